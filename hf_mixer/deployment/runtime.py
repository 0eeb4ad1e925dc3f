# SPDX-License-Identifier: Apache-2.0
"""Running an exported Mixer as a model: in its own runtime, called like the one that it was exported from."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..checkpoints.sources import download
from ..configuration_mixer import MixerConfig, to_pair
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..threads import useful_threads
from ..utils import is_hub_id, read_json
from .formats import FORMATS, check_format, program_files, quiet_exporters
from .settings import read_settings
from .signal_stack import keep_signal_stack


MANIFEST_NAME = "export.json"
# What this package adds to it: the format, the type of each program, and the batches that they take
RECORD_KEY = "hf_mixer"
# The files of an export
PATTERNS = ["*.json", "*.onnx", "*.onnx.data", "*.xml", "*.bin", "*.pte", "*.pt2"]
# Runtimes that compute what several threads of Python ask for at a time. One thread for each batch is faster than all threads
# for one after the other: `hf-mixer predict` with ONNX Runtime 1.2 times for nano in float32 and 1.4 times in int8 (two Xeon
# cores). In OpenVINO, streams gain 1.04 times.
COMPUTE_SEVERAL_BATCHES = ("onnx",)


class ExportedMixerForImageClassification(PreTrainedModel):
    """
    An exported Mixer, for `pipeline` and for whatever else calls a [`MixerForImageClassification`] for its logits. It has no
    weights that torch knows of, and stays on the device of its runtime.

    Args:
        config ([`MixerConfig`]):
            The configuration of the model that was exported.
        exported (`transformers.exporters.ExportedModel`):
            The program, loaded into its runtime.
        batch_size (`int`, *optional*):
            The largest batch that the program takes, by default any. Larger ones are computed in parts.
        is_dynamic (`bool`, *optional*, defaults to `True`):
            Whether it takes smaller ones too. Otherwise they are filled up.
        format (`str`, *optional*), program_dtype (`str`, *optional*):
            The format of the program, and the type that it computes in. Its inputs may have another one, see `dtype`.
        files (`Sequence[Path]`, *optional*):
            The files of the program.
    """

    config_class = MixerConfig
    main_input_name = "pixel_values"

    def __init__(
        self,
        config: MixerConfig,
        exported: Any,
        batch_size: int | None = None,
        is_dynamic: bool = True,
        format: str | None = None,
        program_dtype: str | None = None,
        files: Sequence[Path] = (),
    ):
        super().__init__(config)
        self.exported, self.batch_size, self.is_dynamic = exported, batch_size, is_dynamic
        self.format, self.program_dtype, self.files = format, program_dtype, files
        # Other programs have one set of buffers
        is_shared = exported.export_format in COMPUTE_SEVERAL_BATCHES
        self.turn: AbstractContextManager = nullcontext() if is_shared else threading.Lock()

    @property
    def device(self) -> torch.device:
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        return self.exported.dtype

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images as the image processor returns them.

        Raises:
            `ValueError`: they do not fit the model, or there are labels, which a program computes no loss of.
        """
        shape = (self.config.num_channels, *to_pair(self.config.image_size))
        if pixel_values.shape[1:] != shape:
            raise ValueError(
                f"Expected pixel_values of shape (batch_size, {', '.join(map(str, shape))}), got "
                f"{tuple(pixel_values.shape)}: prepare the images with the image processor of the model"
            )
        if kwargs.get("labels") is not None:
            raise ValueError("An exported model computes no loss: leave out `labels`, or take the model in PyTorch.")
        pixel_values = pixel_values.to(self.device, self.dtype)
        parts = pixel_values.split(self.batch_size or max(len(pixel_values), 1))
        return ImageClassifierOutput(logits=torch.cat([self.compute(part) for part in parts]))

    def compute(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the logits of one batch that the program takes."""
        count = len(pixel_values)
        if not self.is_dynamic and self.batch_size is not None and count < self.batch_size:
            pixel_values = torch.cat(
                [pixel_values, pixel_values.new_zeros(self.batch_size - count, *pixel_values.shape[1:])]
            )
        with self.turn:
            return self.exported(pixel_values=pixel_values).logits[:count]


# `pipeline` looks the names of classes up in this table
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault(
    "exported_mlp_mixer", ExportedMixerForImageClassification.__name__
)


def is_export(folder: Path) -> bool:
    """Whether a folder holds a program that `load_exported` runs."""
    return (folder / MANIFEST_NAME).is_file()


def names_export(source: str | Path, subfolder: str = "", **hub_kwargs) -> bool:
    """Whether a folder, or a repository on the Hub, is an export. Other sources are models in PyTorch."""
    if subfolder:
        return True
    if is_hub_id(str(source)):
        return is_export(download(str(source), [MANIFEST_NAME], **hub_kwargs))
    return is_export(Path(source))


def load_exported(
    source: str | Path,
    dtype: str | None = None,
    num_threads: int | None = None,
    batch_size: int = 1,
    num_callers: int = 1,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[ExportedMixerForImageClassification, MixerImageProcessorPil]:
    """
    Load an exported model and its image processor, on the CPU.

    Args:
        source (`str` or `Path`):
            A folder that [`export_model`] wrote, or a repository with its files on the Hub.
        dtype (`str`, *optional*):
            `"float32"`, `"float16"` or `"int8"`, where there are several programs, as in the layout of transformers.js. By
            default the first of them.
        num_threads (`int`, *optional*):
            CPU threads of ONNX Runtime and OpenVINO. By default as many as torch has, and have enough to do.
        batch_size (`int`, *optional*, defaults to 1):
            The size of the batches that will come, from which it follows how many threads have enough to do.
        num_callers (`int`, *optional*, defaults to 1):
            Threads of Python that will call the model at a time. ONNX Runtime computes for all of them together, and each
            gets its share of `num_threads`. In other runtimes they take turns.
        subfolder (`str`, *optional*):
            The folder of the export in `source`, such as `"onnx"` or `"openvino"` in a repository that `hf-mixer publish`
            put it in.
        revision (`str`, *optional*), cache_dir (`str`, *optional*), token (`str`, *optional*):
            For the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the file holds. The format `torch` is pickled and needs it. The others hold none.

    Returns:
        `tuple`: the model and its image processor, on PIL.

    Raises:
        `ValueError`: there is no export, none of this type, or one that would run code.
        `ImportError`: its runtime is not installed.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> from hf_mixer.deployment import load_exported

    >>> model, image_processor = load_exported("photos-onnx")
    >>> classifier = pipeline("image-classification", model, image_processor=image_processor)
    ```"""
    folder = find_export(source, subfolder, revision, cache_dir, token)
    manifest = read_json(folder / MANIFEST_NAME)
    record = manifest.get(RECORD_KEY) or {}
    name, programs = record.get("format"), record.get("programs") or {}
    if name not in FORMATS or not programs:
        raise ValueError(f"{folder / MANIFEST_NAME} is not by hf_mixer: export the model with `hf-mixer export`")
    check_format(name)
    if dtype is not None and dtype not in programs:
        raise ValueError(f"{source} holds no program in {dtype}: it has {', '.join(programs)}")
    if name == "torch" and not trust_remote_code:
        raise ValueError(
            f"{source} is pickled by torch, and what is pickled can run code: pass `trust_remote_code=True` "
            "(--trust_remote_code) if you trust whoever wrote it"
        )
    # A program that prepares images itself has other settings beside it
    config, image_processor = read_settings(folder, record.get("image_processor"))
    dtype = dtype or next(iter(programs))
    path = folder / programs[dtype]
    if not path.is_file():
        raise ValueError(f"{folder} lacks {path.relative_to(folder)}, which its {MANIFEST_NAME} names: export again")
    if num_threads is None:
        num_threads = min(torch.get_num_threads(), useful_threads(config, batch_size))
    if manifest["export_format"] in COMPUTE_SEVERAL_BATCHES:
        num_threads = -(-num_threads // num_callers)
    with quiet_exporters():
        exported = load_program(path, manifest, num_threads, dtype)
    model = ExportedMixerForImageClassification(
        config,
        exported,
        batch_size=record.get("batch_size"),
        is_dynamic=record.get("dynamic", True),
        format=name,
        program_dtype=dtype,
        files=program_files(path, name),
    )
    return model.eval(), image_processor


def find_export(
    source: str | Path,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
) -> Path:
    """Return the folder of an export, which is downloaded where `source` is a repository on the Hub."""
    folder = Path(source)
    if not folder.is_dir():
        if not is_hub_id(str(source)):
            raise ValueError(f"{source} is no folder here, and no name of a repository on the Hub (owner/name)")
        patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in PATTERNS]
        folder = download(str(source), patterns, revision, cache_dir=cache_dir, token=token)
    folder = folder / subfolder
    if not is_export(folder):
        raise ValueError(f"{folder} holds no {MANIFEST_NAME}: expected a folder that `hf-mixer export` wrote")
    return folder


@keep_signal_stack()
def load_program(path: Path, manifest: dict[str, Any], num_threads: int, dtype: str) -> Any:
    """Return the `ExportedModel` of transformers for the program of a type in a file, loaded into its runtime."""
    from transformers.exporters import AutoHfExporter, ExportedComponent, ExportedModel, ExportMetadata

    kind = manifest["export_format"]
    program = AutoHfExporter.from_config({"export_format": kind}).load_program(path)
    if manifest[RECORD_KEY]["format"] == "transformers.js":
        from .onnx_preprocessing import remove_preprocessing

        # The image processor prepares images here
        remove_preprocessing(program)
        # The file that still has it, which ONNX Runtime would open (transformers 5.24)
        del program.meta["path"]
    metadata = ExportMetadata.from_dict(manifest["components"]["model"]["metadata"])
    exported = ExportedModel({"model": ExportedComponent(program, metadata)}, kind)
    return exported.to("cpu", **runtime_options(kind, num_threads, dtype))


def runtime_options(kind: str, num_threads: int, dtype: str) -> dict[str, Any]:
    """Return what a runtime has to know beside the program: the threads, and the type to compute in."""
    if kind == "onnx":
        from onnxruntime import SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = num_threads
        # Threads that wait for the next call take processor time from what reads its images
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return {"session_options": options}
    if kind == "openvino":
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": num_threads}
        if dtype != "int8":
            # On processors with bfloat16 instructions, its default is bfloat16. The rest of an int8 program may have it: B/16 is
            # 4 % faster, and nano as exact.
            config["INFERENCE_PRECISION_HINT"] = "f32"
        return {"config": config}
    return {}
