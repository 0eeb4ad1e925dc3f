# SPDX-License-Identifier: Apache-2.0
"""Exporting a Mixer: a program for another runtime, with all that it takes to run it, compared with the model first."""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.export import Dim

from ..checkpoints import load_checkpoint
from ..checkpoints.reference import deterministic_image
from ..configuration_mixer import MixerConfig
from ..modeling_mixer import MixerForImageClassification
from ..utils import check_destination, read_json, written_whole
from .card import write_card
from .formats import FORMATS, check_format, quiet_exporters
from .quantization import find_recipes, to_float16
from .runtime import MANIFEST_NAME, RECORD_KEY, is_export, load_exported
from .settings import write_settings


# The largest difference of an output to the model's own, over the largest output
BOUNDS = {"float32": 2e-6, "float16": 5e-3, "int8": 0.25}
# Images that are compared
NUM_COMPARED = 64
# Of an ExecuTorch program, which reserves the memory for it
EXECUTORCH_BATCH_SIZE = 16


@dataclass(frozen=True)
class Export:
    """
    What became of an export.

    Args:
        differences (`dict[str, float]`):
            For the type of each program, the largest difference of an output to the model's own in float32, over the largest
            output.
        recipe (`str`, *optional*):
            How the model was quantized.
    """

    differences: dict[str, float]
    recipe: str | None = None


def export_model(
    source: str,
    destination: str | Path,
    format: str,
    dtype: str | None = None,
    dynamic: bool = True,
    batch_size: int | None = None,
    calibration_images: Iterable[Image.Image] | None = None,
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
        revision (`str`, *optional*):
            Branch, tag or commit of a repository on the Hub.

    Returns:
        [`Export`]: how the program compares with the model.

    Raises:
        `ValueError`: an argument is unknown, the model is quantized already, or the program differs by more than `BOUNDS`
            allow. Nothing is written then.
        `ImportError`: what the format needs is not installed.
    """
    dtypes = ["float32", "float16", "int8"] if format == "transformers.js" and dtype is None else [dtype or "float32"]
    for each in dtypes:
        check_format(format, each)
    check_destination(Path(destination))
    if is_export(Path(source)):
        raise ValueError(f"{source} is an export: give the model that it was made of")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` has to be at least 1, got {batch_size}")
    model, image_processor = load_checkpoint(source, revision=revision)
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{source} is quantized already: export the model that it was made of, with --dtype int8")
    model = model.float().eval()
    if not dynamic:
        batch_size = batch_size or 1
    elif format == "executorch":
        batch_size = batch_size or EXECUTORCH_BATCH_SIZE
    elif batch_size is not None:
        raise ValueError(f"`batch_size` is for programs of one size of batches, and for executorch: got {batch_size}")
    calibration = None
    if calibration_images is not None:
        parts = [image_processor(image, return_tensors="pt")["pixel_values"] for image in calibration_images]
        if not parts:
            raise ValueError("`calibration_images` are empty: give some hundred images, or none")
        calibration = torch.cat(parts)
    images = comparison_images(model.config) if calibration is None else calibration[:NUM_COMPARED]
    with torch.no_grad():
        expected = model(images).logits
    with written_whole(Path(destination)) as folder:
        folder.mkdir()
        programs, recipe = {}, None
        for each in dtypes:
            with quiet_exporters():
                if each == "int8":
                    programs[each], recipe = quantize(model, format, dynamic, batch_size, calibration)
                else:
                    programs[each] = convert(model, format, each, dynamic, batch_size)
        files = write_programs(folder, format, programs, image_processor)
        record = {"format": format, "programs": files, "dynamic": dynamic, "batch_size": batch_size, "recipe": recipe}
        manifest = read_json(folder / MANIFEST_NAME) | {RECORD_KEY: record}
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        write_settings(folder, model.config, image_processor)
        differences = {each: compare(folder, each, images, expected) for each in dtypes}
        write_card(folder, source, model.config, format, differences, recipe)
    return Export(differences, recipe)


def convert(model: MixerForImageClassification, format: str, dtype: str, dynamic: bool, batch_size: int | None) -> Any:
    """Return the `ExportedModel` of transformers for a model, computing in float32 or float16."""
    if dtype == "float32":
        return trace(model, format, dynamic, batch_size)
    if format == "openvino":
        return trace(model, format, dynamic, batch_size, compress_to_fp16=True)
    if FORMATS[format].exporter == "OnnxExporter":
        exported = trace(model, format, dynamic, batch_size)
        exported.components["model"].program = to_float16(exported.program)
        return exported
    # It takes images in float16 as well
    return trace(copy.deepcopy(model).half(), format, dynamic, batch_size)


def trace(model: MixerForImageClassification, format: str, dynamic: bool, batch_size: int | None, **options) -> Any:
    """Run the exporter of a format; `options` are those of its configuration."""
    from transformers import exporters

    config_class, exporter_class = (
        getattr(exporters, name) for name in (FORMATS[format].config, FORMATS[format].exporter)
    )
    # A size of 1 would be taken for one that does not change
    sample = comparison_images(model.config, batch_size or 2)
    shapes = {"pixel_values": {0: Dim("batch_size", max=batch_size)}} if dynamic else None
    return exporter_class().export(model, {"pixel_values": sample}, config_class(dynamic_shapes=shapes, **options))


def quantize(
    model: MixerForImageClassification,
    format: str,
    dynamic: bool,
    batch_size: int | None,
    calibration: torch.Tensor | None,
) -> tuple[Any, str]:
    """
    Return the `ExportedModel` of transformers for a model in int8, by the first recipe that keeps its answers, and the name of
    that recipe.

    Raises:
        `ValueError`: none keeps them.
    """
    for recipe in find_recipes(format, calibration):
        exported = trace(model, format, dynamic, batch_size, quantizer=recipe.quantizer)
        return exported, recipe.name
    raise ValueError(f"no recipe for int8 keeps the answers of the model in {format}")


def write_programs(folder: Path, format: str, programs: dict[str, Any], image_processor: Any) -> dict[str, str]:
    """Write programs into a folder, and return the names of their files."""
    if format == "transformers.js":
        return write_transformers_js(folder, programs, image_processor)
    ((dtype, exported),) = programs.items()
    exported.config = None  # its class is code of this package
    exported.save_pretrained(folder)
    return {dtype: read_json(folder / MANIFEST_NAME)["components"]["model"]["file"]}


def compare(folder: Path, dtype: str, images: torch.Tensor, expected: torch.Tensor) -> float:
    """
    Run images through a written program, in its own runtime.

    Returns:
        `float`: the largest difference to the outputs of the model, over the largest output.

    Raises:
        `ValueError`: it is above the bound of `dtype`.
    """
    program, _ = load_exported(folder, dtype, trust_remote_code=True)
    # Batches of two sizes
    parts = images.split([1, len(images) - 1])
    actual = torch.cat([program(part).logits.float() for part in parts])
    difference = float((actual - expected).abs().max() / expected.abs().max())
    # Written as a negation, which refuses NaN too
    if not difference <= BOUNDS[dtype]:
        raise ValueError(
            f"the program in {dtype} differs from the model by {difference:.1e} of the largest output, more than "
            f"{BOUNDS[dtype]}: nothing was written"
        )
    return difference


def comparison_images(config: MixerConfig, count: int = 8) -> torch.Tensor:
    """Return images of shape `(count, num_channels, height, width)` in [-1, 1], the same ones every time."""
    image = torch.from_numpy(deterministic_image(config)).float()
    return torch.stack(
        [image.roll((7 * index, 5 * index), dims=(1, 2)) * (1 - index / (2 * count)) for index in range(count)]
    )
