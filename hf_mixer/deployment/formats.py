# SPDX-License-Identifier: Apache-2.0
"""The formats of exported programs, and what each needs."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """
    One format of exported programs.

    Args:
        exporter (`str`):
            The class of `transformers.exporters` that writes it.
        packages (`tuple[str, ...]`):
            What exporting and running it needs beside torch and transformers.
        int8_packages (`tuple[str, ...]`):
            What int8 needs beside these.
        runtime (`str`):
            What runs it, for people.
    """

    exporter: str
    packages: tuple[str, ...]
    int8_packages: tuple[str, ...]
    runtime: str


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "onnx": Format("OnnxExporter", ONNX_PACKAGES, (), "ONNX Runtime"),
    "openvino": Format("OpenVINOExporter", ("openvino",), ("nncf",), "OpenVINO"),
    "executorch": Format("ExecutorchExporter", ("executorch",), ("torchao",), "ExecuTorch"),
    "torch": Format("DynamoExporter", (), (), "PyTorch"),
    # Programs of ONNX in another layout
    "transformers.js": Format("OnnxExporter", ONNX_PACKAGES, (), "transformers.js"),
}
DTYPES = ("float32", "float16", "int8")


def missing_reason(name: str, dtype: str = "float32") -> str | None:
    """Say what a format lacks here, or return `None` where models can be exported to it and run."""
    if find_spec("transformers.exporters.runners") is None:
        return "exports need transformers 5.23 or later: pip install -U transformers"
    packages = FORMATS[name].packages + (FORMATS[name].int8_packages if dtype == "int8" else ())
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return f"{', '.join(missing)} {verb} not installed: pip install {' '.join(missing)}"
    return None


def check_format(name: str, dtype: str = "float32") -> None:
    """
    Raises:
        `ValueError`: there is no such format or type.
        `ImportError`: something that it needs is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: expected one of {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    reason = missing_reason(name, dtype)
    if reason is not None:
        raise ImportError(reason)


def program_files(path: Path, name: str) -> list[Path]:
    """Return the files of a program of a format: `path`, and that of the weights, where they lie beside it."""
    from transformers import exporters

    program, *others = getattr(exporters, FORMATS[name].exporter).program_files(path.name)
    return [path.with_name(program), *(path.with_name(other) for other in others if path.with_name(other).is_file())]


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep off the screen what exporters say: their steps, and warnings about versions and functions that no Mixer uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
