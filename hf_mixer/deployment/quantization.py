# SPDX-License-Identifier: Apache-2.0
"""Narrow types for exported programs."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Recipe:
    name: str
    quantizer: Any


def find_recipes(format: str, calibration: torch.Tensor | None) -> list[Recipe]:
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    config = OnnxRuntimeDynamicConfig(per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    return [Recipe("weights per channel, activations in every batch", OnnxRuntimeQuantizer(config))]


def to_float16(program):
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return onnx_ir.from_proto(convert_float_to_float16(onnx_ir.to_proto(program), keep_io_types=True))
