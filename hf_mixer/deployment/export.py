# SPDX-License-Identifier: Apache-2.0
"""Exporting a Mixer: a program for another runtime, with all that it takes to run it, compared with the model first."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.export import Dim
from torch.fx import GraphModule

from transformers import PreTrainedModel

from ..checkpoints import load_checkpoint
from ..checkpoints.reference import deterministic_image
from ..configuration_mixer import MixerConfig
from ..image_processing_mixer import MixerImageProcessor
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification
from ..utils import check_destination, hash_tensors, is_hub_id, read_json, written_whole
from .card import write_card
from .formats import DTYPES, FORMATS, check_format, quiet_exporters
from .quantization import MAX_DEVIATION, deviation, find_recipes, halve, relative_difference, to_float16
from .runtime import (
    MANIFEST_NAME,
    RECORD_KEY,
    ExportedMixerForImageClassification,
    is_export,
    load_exported,
    runtime_options,
)
from .settings import describe_image_processor, write_settings
from .signal_stack import keep_signal_stack
from .token_mixing import mix_tokens_by_convolution
from .transformers_js import FILE_NAMES, write_transformers_js


# The largest difference of an output to the model's own, over the largest output. For int8 see `MAX_DEVIATION`.
BOUNDS = {"float32": 1e-5, "float16": 5e-3}
# The same for images that programs resize themselves, where a pixel may be rounded otherwise
RESIZED_BOUND = 0.02
# How many images are compared
NUM_COMPARED = 64
# The largest batch of an ExecuTorch program, which reserves the memory for it
EXECUTORCH_BATCH_SIZE = 16


@dataclass(frozen=True)
class Export:
    """
    How the programs of an export compare with the model.

    Args:
        differences (`dict[str, float]`):
            For the type of each program, the largest difference of an output to the model's own in float32, over the largest
            output.
        recipe (`str`, *optional*):
            How the model was quantized.
    """

    differences: dict[str, float]
    recipe: str | None = None


@dataclass(frozen=True)
class Tracing:
    """
    How programs are made of a model.

    Args:
        model ([`MixerForImageClassification`]):
            The model, in float32.
        format (`str`):
            One of `FORMATS`.
        dynamic (`bool`):
            Whether programs take batches of any size.
        batch_size (`int`, *optional*):
            The largest batch with `dynamic`, where there is one, else the only one.
    """

    model: MixerForImageClassification
    format: str
    dynamic: bool
    batch_size: int | None

    def convert(self, dtype: str) -> Any:
        """Return the `ExportedModel` of transformers that computes in float32 or float16."""
        if self.format in ("executorch", "torch"):
            return self.trace(self.model if dtype == "float32" else halve(self.model, self.format))
        model = mix_tokens_by_convolution(self.model)
        if self.format == "openvino":
            return self.trace(model, compress_to_fp16=dtype == "float16")
        exported = self.trace(model)
        if dtype == "float16":
            exported.components["model"].program = to_float16(exported.program)
        return exported

    def quantize(self, calibration: torch.Tensor | None, images: torch.Tensor) -> tuple[Any, str]:
        """
        Return the `ExportedModel` of transformers in int8, by the first recipe that keeps the answers for `images`, and the
        name of that recipe.

        Raises:
            `ValueError`: none keeps them.
        """
        expected, deviations = answer(self.model, images), []
        for recipe in find_recipes(self.format, self.model, calibration, None if self.dynamic else self.batch_size):
            exported = self.trace(recipe.model, quantizer=recipe.quantizer)
            with keep_signal_stack():
                exported.to("cpu", **runtime_options(str(exported.export_format), torch.get_num_threads(), "int8"))
            program = ExportedMixerForImageClassification(self.model.config, exported, self.batch_size, self.dynamic)
            deviations.append(deviation(expected, answer(program, images)))
            if deviations[-1] <= MAX_DEVIATION:
                return exported, recipe.name
        raise ValueError(
            f"int8 deviates from the model by {min(deviations):.2f} of the spread of its outputs in {self.format}, more than "
            f"{MAX_DEVIATION}: calibrate it on other images, or take float16"
        )

    @keep_signal_stack()
    def trace(self, model: MixerForImageClassification, **options) -> Any:
        """Run the exporter of the format; `options` are those of its configuration."""
        from transformers import exporters

        exporter = getattr(exporters, FORMATS[self.format].exporter)()
        # A size of 1 would be taken for one that does not change
        sample = comparison_images(model.config, self.batch_size or 2)
        shapes = {"pixel_values": {0: Dim("batch_size", max=self.batch_size)}} if self.dynamic else None
        exported = exporter.export(model, {"pixel_values": sample}, {"dynamic_shapes": shapes, **options})
        remove_traces(exported.program, self.format)
        return exported


def export_model(
    source: str,
    destination: str | Path,
    format: str,
    dtype: str | None = None,
    dynamic: bool = True,
    batch_size: int | None = None,
    calibration_images: Iterable[Image.Image] | None = None,
    image_processor: MixerImageProcessorPil | MixerImageProcessor | None = None,
    base_model: str | None = None,
    revision: str | None = None,
) -> Export:
    """
    Write a model as a program for another runtime, with its settings and a card. Images go through the program, in its own
    runtime, and through the model first.

    Args:
        source (`str`):
            Anything that [`load_checkpoint`] takes.
        destination (`str` or `Path`):
            The folder to write. It must not exist, or be empty.
        format (`str`):
            `"onnx"`, `"openvino"`, `"executorch"`, `"torch"` or `"transformers.js"`.
        dtype (`str`, *optional*):
            `"float32"`, `"float16"` or `"int8"`. By default float32, and all three for transformers.js.
        dynamic (`bool`, *optional*, defaults to `True`):
            Whether the program takes batches of any size.
        batch_size (`int`, *optional*):
            With `dynamic` the largest batch of an ExecuTorch program (default 16), else the only one (default 1).
        calibration_images (`Iterable[PIL.Image.Image]`, *optional*):
            Images such as the model will get, a few hundred, by which int8 is scaled. Without them it is scaled in every batch.
        image_processor ([`MixerImageProcessorPil`] or [`MixerImageProcessor`], *optional*):
            The image processor to export, in place of the model's own.
        base_model (`str`, *optional*):
            The repository of the model on the Hub, for the card. By default `source`, where it is one.
        revision (`str`, *optional*):
            Branch, tag or commit of a repository on the Hub.

    Returns:
        [`Export`]: how the program compares with the model.

    Raises:
        `ValueError`: an argument is unknown, the model is quantized already, or the program differs by more than `BOUNDS`
            allow, or in int8 by more than `MAX_DEVIATION`. Nothing is written then.
        `ImportError`: what the format needs is not installed.
    """
    dtypes = list(DTYPES) if format == "transformers.js" and dtype is None else [dtype or "float32"]
    for each in dtypes:
        check_format(format, each)
    check_destination(Path(destination))
    batch_size = choose_batch_size(format, dynamic, batch_size)
    if is_export(Path(source)):
        raise ValueError(f"{source} is an export: give the model that it was made of")
    model, own_processor = load_checkpoint(source, revision=revision)
    image_processor = image_processor or own_processor
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{source} is quantized already: export the model that it was made of, with --dtype int8")
    base_model = base_model or (source if is_hub_id(source) else None)
    tracing = Tracing(model.float().eval(), format, dynamic, batch_size)
    calibration = None if calibration_images is None else prepare(calibration_images, image_processor)
    images = comparison_images(model.config) if calibration is None else calibration[:NUM_COMPARED]
    programs, recipe = {}, None
    with quiet_exporters():
        for each in dtypes:
            if each == "int8":
                programs[each], recipe = tracing.quantize(calibration, images)
            else:
                programs[each] = tracing.convert(each)
    with written_whole(Path(destination)) as folder:
        folder.mkdir()
        write_settings(folder, model.config, image_processor)
        manifest = write_programs(folder, format, programs, image_processor)
        manifest[RECORD_KEY] |= {
            "format": format,
            "dynamic": dynamic,
            "batch_size": batch_size,
            "recipe": recipe,
            "weights": hash_tensors(model.state_dict()),
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        expected = answer(model, images)
        differences = {each: compare(folder, each, images, expected) for each in dtypes}
        if format == "transformers.js" and image_processor.do_resize:
            compare_preprocessing(folder, dtypes[0], image_processor)
        files = manifest[RECORD_KEY]["programs"]
        write_card(folder, source, base_model, model.config, format, files, differences, recipe)
    return Export(differences, recipe)


def remove_traces(program: Any, format: str) -> None:
    """Remove what the nodes of a program say of where they come from: stack traces, with the paths of this machine."""
    if format == "torch":
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, GraphModule) else ():
                node.meta.pop("stack_trace", None)
    elif FORMATS[format].exporter == "OnnxExporter":
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        ClearMetadataAndDocStringPass()(program)


def choose_batch_size(format: str, dynamic: bool, batch_size: int | None) -> int | None:
    """
    Return the largest batch of a program, `None` where there is none.

    Raises:
        `ValueError`: `batch_size` is less than 1, or this program takes any.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` has to be at least 1, got {batch_size}")
    if not dynamic:
        return batch_size or 1
    if format == "executorch":
        return batch_size or EXECUTORCH_BATCH_SIZE
    if batch_size is not None:
        raise ValueError(
            f"a dynamic program in {format} takes batches of any size, got `batch_size` {batch_size}: leave it out, or make "
            "the program for this size with `dynamic=False` (--no-dynamic)"
        )
    return None


def prepare(images: Iterable[Image.Image], image_processor: Any) -> torch.Tensor:
    """
    Return images as the model takes them, one after the other: they may be large.

    Raises:
        `ValueError`: there are none.
    """
    prepared = [image_processor(image, return_tensors="pt")["pixel_values"] for image in images]
    if not prepared:
        raise ValueError("`calibration_images` are empty: give some hundred images, or none")
    return torch.cat(prepared)


def answer(model: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a model for images, in batches of two sizes."""
    with torch.no_grad():
        return torch.cat([model(part).logits.float() for part in images.tensor_split([1]) if len(part)])


def write_programs(folder: Path, format: str, programs: dict[str, Any], image_processor: Any) -> dict[str, Any]:
    """
    Write programs into a folder, and return its manifest: what transformers records of an export, and what this package
    adds under `RECORD_KEY`.
    """
    exported = next(iter(programs.values()))
    if format != "transformers.js":
        exported.config = None  # its class is code of this package
        exported.save_pretrained(folder)
        manifest = read_json(folder / MANIFEST_NAME)
        files = dict.fromkeys(programs, manifest["components"]["model"]["file"])
        return manifest | {RECORD_KEY: {"programs": files}}
    import onnx_ir

    networks = {dtype: onnx_ir.to_proto(exported.program) for dtype, exported in programs.items()}
    write_transformers_js(folder, networks, image_processor)
    files = {dtype: f"onnx/{FILE_NAMES[dtype]}" for dtype in programs}
    component = {"file": files[next(iter(files))], "metadata": asdict(exported.components["model"].metadata)}
    # The programs prepare images themselves, and preprocessor_config.json leaves it to them
    record = {"programs": files, "image_processor": describe_image_processor(image_processor)}
    return {"export_format": str(exported.export_format), "components": {"model": component}, RECORD_KEY: record}


def compare(folder: Path, dtype: str, images: torch.Tensor, expected: torch.Tensor) -> float:
    """
    Run images through a written program, in its own runtime.

    Returns:
        `float`: the largest difference to the outputs of the model, over the largest output.

    Raises:
        `ValueError`: it is above the bound of `dtype`.
    """
    with quiet_exporters():
        program, _ = load_exported(folder, dtype, trust_remote_code=True)
    actual = answer(program, images)
    difference = relative_difference(expected, actual)
    found, bound, unit = difference, BOUNDS.get(dtype), "the largest output"
    if bound is None:
        found, bound, unit = deviation(expected, actual), MAX_DEVIATION, "the spread of the outputs"
    # Written as a negation, which refuses NaN too
    if not found <= bound:
        raise ValueError(
            f"the program in {dtype} differs from the model by {found:.1e} of {unit}, more than {bound}: nothing was written. "
            "Take another type or format"
        )
    return difference


def compare_preprocessing(folder: Path, dtype: str, image_processor: Any) -> None:
    """
    Run an image of another size through a written program that prepares images itself, and through its network after the image
    processor.

    Raises:
        `ValueError`: the answers differ.
    """
    from onnxruntime import InferenceSession

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (NUM_COMPARED, 3 * NUM_COMPARED, 3), np.uint8))
    # The pixels of RGB images, neither resized nor cropped
    pixel_values = image_processor(image, do_resize=False, do_center_crop=False, num_channels=3, return_tensors="np")
    session = InferenceSession(folder / read_json(folder / MANIFEST_NAME)[RECORD_KEY]["programs"][dtype])
    actual = session.run(None, {"pixel_values": pixel_values["pixel_values"]})[0]
    with quiet_exporters():
        network, _ = load_exported(folder, dtype)
    difference = relative_difference(answer(network, prepare([image], image_processor)), actual)
    if not difference <= RESIZED_BOUND:
        raise ValueError(
            f"the program resizes images otherwise than Pillow: its answer differs by {difference:.1e} of the largest output, "
            f"more than {RESIZED_BOUND}. Nothing was written: take the format onnx, in which the image processor resizes"
        )


def comparison_images(config: MixerConfig, count: int = 8) -> torch.Tensor:
    """Return images of shape `(count, num_channels, height, width)` in [-1, 1], the same ones every time."""
    image = torch.from_numpy(deterministic_image(config)).float()
    return torch.stack(
        [image.roll((7 * index, 5 * index), dims=(1, 2)) * (1 - index / (2 * count)) for index in range(count)]
    )
