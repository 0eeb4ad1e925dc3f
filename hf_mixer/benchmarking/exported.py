# SPDX-License-Identifier: Apache-2.0
"""A Mixer in ONNX Runtime and in OpenVINO, exported by transformers."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch

from transformers import PreTrainedModel


# The packages that each needs
RUNTIMES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}


def missing_reason(runtime: str) -> str | None:
    """Say what a runtime lacks here, or return `None` where it can run."""
    missing = [package for package in RUNTIMES[runtime] if find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return f"{', '.join(missing)} {verb} not installed: pip install {' '.join(missing)}"
    if find_spec("transformers.exporters.runners") is None:
        return "exported models run with transformers 5.23 or later: pip install -U transformers"
    return None


def export_model(
    model: PreTrainedModel, pixel_values: torch.Tensor, runtime: str, dtype: str
) -> Callable[[torch.Tensor], Any]:
    """
    Return a function that runs a model in a runtime, on the CPU and on as many threads as torch.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in float32.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Images in float32. The function takes others of the same shape.
        runtime (`str`):
            One of `RUNTIMES`.
        dtype (`str`):
            What to compute in: `"float32"`, in ONNX Runtime also `"int8"` (weights are rounded once, activations in
            every batch), in OpenVINO also `"bfloat16"`.
    """
    export = {"onnxruntime": _export_to_onnxruntime, "openvino": _export_to_openvino}[runtime]
    with _exporters_quiet():
        exported = export(model, pixel_values, dtype)
    return lambda pixel_values: exported(pixel_values=pixel_values)


@contextmanager
def _exporters_quiet() -> Iterator[None]:
    """Keep their steps, and warnings about versions and functions that a Mixer has no use for, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)


def _export_to_onnxruntime(model: PreTrainedModel, pixel_values: torch.Tensor, dtype: str):
    from onnxruntime import SessionOptions

    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig()) if dtype == "int8" else None
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for the next call would take processor time from what is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    exported = OnnxExporter().export(model, {"pixel_values": pixel_values}, OnnxConfig(quantizer=quantizer))
    return exported.to("cpu", session_options=options)


def _export_to_openvino(model: PreTrainedModel, pixel_values: torch.Tensor, dtype: str):
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    # Its default on a processor with bfloat16 instructions is bfloat16
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    exported = OpenVINOExporter().export(model, {"pixel_values": pixel_values}, OpenVINOConfig())
    return exported.to("cpu", config=config)
