# SPDX-License-Identifier: Apache-2.0
"""Exports of a model and the handler of Inference Endpoints, beside the model in one repository."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..checkpoints import load_checkpoint
from ..deployment import export_model, load_exported
from ..deployment.card import LOADING
from ..deployment.formats import FORMATS, check_format, program_files
from ..deployment.quantization import relative_difference
from ..deployment.runtime import MANIFEST_NAME, RECORD_KEY, is_export
from ..deployment.transformers_js import DTYPE_NAMES
from ..modeling_mixer import MixerForImageClassification
from ..utils import format_bytes, hash_tensors, list_requirements, read_json
from .foreign import refuse_foreign_code, refuse_unusual_files
from .remote_code import predict
from .saving import CARD_NAME


# Each goes into a folder of its name. `torch` is not among them: it is pickled, and the weights are there.
EXPORTS = ("onnx", "openvino", "executorch", "transformers.js")
HANDLER = "handler"
HANDLER_NAME, REQUIREMENTS_NAME = "handler.py", "requirements.txt"
OWN_HANDLER = Path(__file__).parents[1] / "deployment" / HANDLER_NAME
# The largest difference of an output to the model's, over the largest output, up to which an export is taken for one of this
# model. It was compared more closely when it was made, maybe on another processor. int8 differed by 0.06 for the CIFAR-10 model.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "int8": 0.25}


def find_extra_files(folder: Path, extras: Iterable[str], trust_code: bool = False) -> dict[str, Path]:
    """
    Return, by their names in a repository, the files of exports that `folder` holds already, and of the handler: the
    folder's own where it has one, else that of this package. What is missing is for `write_extras` to make.

    Raises:
        `ValueError`: there is no such extra, what the folder holds under its name is no whole export, is a link or lies
            elsewhere, or its handler is not that of this package and not trusted.
        `ImportError`: something that an export needs is not installed.
    """
    files: dict[str, Path] = {}
    for extra in extras:
        if extra == HANDLER:
            own = {HANDLER_NAME: OWN_HANDLER.read_bytes(), REQUIREMENTS_NAME: own_requirements()}
            refuse_unusual_files(folder, own)
            given = {name: folder / name for name in own if (folder / name).is_file()}
            for name, path in ({} if trust_code else given).items():
                refuse_foreign_code(path, own[name], "remove it, and that of this version goes up")
            files |= {HANDLER_NAME: OWN_HANDLER, **given}
            continue
        if extra not in EXPORTS:
            raise ValueError(f"{extra!r} cannot be published: expected {', '.join((*EXPORTS, HANDLER))}")
        check_format(extra)
        if os.path.lexists(folder / extra):
            files |= {f"{extra}/{name}": path for name, path in find_export_files(folder, extra).items()}
    return files


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and not Path(value).is_absolute()


def own_requirements() -> bytes:
    """Return what the handler needs, as pip reads it."""
    return "".join(f"{line}\n" for line in list_requirements()).encode()


def find_export_files(folder: Path, format: str) -> dict[str, Path]:
    """Return, by their names in it, the files of the export in the folder `format` of `folder`."""
    export = folder / format
    way_out = "remove or rename it, and the model is exported again"
    refuse_unusual_files(folder, [f"{format}/{name}" for name in (MANIFEST_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME)])
    record = read_record(export) if is_export(export) else {}
    programs = record.get("programs")
    is_known = isinstance(programs, dict) and programs.keys() <= BOUNDS.keys()
    if record.get("format") != format or not programs or not is_known or not all(map(is_name, programs.values())):
        raise ValueError(f"{export} holds no export that `hf-mixer export --format {format}` wrote: {way_out}")
    names = [MANIFEST_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME]
    for files in list_program_files(export).values():
        names += [path.relative_to(export).as_posix() for path in files]
    for name in names:
        path = (export / name).resolve()
        refuse_unusual_files(folder, [f"{format}/{name}"])
        if not path.is_relative_to(folder.resolve() / format):
            raise ValueError(f"{export / name} lies elsewhere, at {path}: put the file itself there")
        if not path.is_file():
            raise ValueError(f"{export} lacks {name}: {way_out}")
    return {name: export / name for name in names}


def list_program_files(export: Path) -> dict[str, list[Path]]:
    """Return, for the type of each program of an export, its files."""
    record = read_record(export)
    return {dtype: program_files(export / name, record["format"]) for dtype, name in record["programs"].items()}


def read_record(export: Path) -> dict[str, Any]:
    """Return what this package noted of an export."""
    record = read_json(export / MANIFEST_NAME).get(RECORD_KEY)
    return record if isinstance(record, dict) else {}


def write_extras(folder: Path, directory: Path, extras: Iterable[str]) -> None:
    """
    Compare the exports of `folder` with the model in it, and write into `directory` what is asked for and not there.

    Raises:
        `ValueError`: an export is of another model, or the model cannot be exported.
        `ImportError`: something that an export needs is not installed.
    """
    model = image_processor = None
    for format in dict.fromkeys(extras):
        if format == HANDLER:
            if not (directory / REQUIREMENTS_NAME).exists():
                (directory / REQUIREMENTS_NAME).write_bytes(own_requirements())
        elif (folder / format).exists():
            if model is None:
                model, image_processor = load_checkpoint(str(folder))
            check_same_model(folder / format, model, image_processor)
        else:
            export_model(str(folder), directory / format, format)
            # The card of the repository speaks of it
            (directory / format / CARD_NAME).unlink()


def check_same_model(export: Path, model: MixerForImageClassification, image_processor: Any) -> None:
    """
    Raises:
        `ValueError`: an export was made of other weights than those of `model`, or answers otherwise.
    """
    way_out = "export the model again, or remove that folder, and it is exported in float32"
    expected, record = predict(model, image_processor), read_record(export)
    if record.get("weights") != hash_tensors(model.float().state_dict()):
        raise ValueError(f"{export} was made of other weights than those of the model: {way_out}")
    for dtype in record["programs"]:
        actual = predict(*load_exported(export, dtype))
        if actual["labels"] != expected["labels"]:
            raise ValueError(f"{export} has other labels than the model: {way_out}")
        share = relative_difference(expected["logits"], actual["logits"])
        # Written as a negation, which refuses NaN too
        if not share <= BOUNDS[dtype]:
            raise ValueError(
                f"{export} is damaged: in {dtype} its outputs differ by {share:.1e} of the largest from the model's: {way_out}"
            )


def describe_exports(release: Path) -> list[dict[str, Any]]:
    """Return what the card says about each export in a release: its folder, what runs it, and its types with their sizes."""
    exports = []
    for format in EXPORTS:
        if is_export(release / format):
            programs = list_program_files(release / format)
            sizes = [sum(path.stat().st_size for path in files) for files in programs.values()]
            exports.append(
                {
                    "folder": format,
                    "runtime": FORMATS[format].runtime,
                    "packages": " ".join(FORMATS[format].packages),
                    "options": LOADING.get(format, ""),
                    "dtypes": [DTYPE_NAMES[d] for d in programs] if format == "transformers.js" else list(programs),
                    "sizes": [format_bytes(size) for size in sizes],
                }
            )
    return exports
