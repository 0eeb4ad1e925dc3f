# SPDX-License-Identifier: Apache-2.0
"""Integers and 8-bit floats in place of wider types, by torchao."""

import tempfile

import torch
from torch import nn

from transformers import PreTrainedModel, TorchAoConfig


QUANTIZED = ("int8", "float8")


def has_float8(device: torch.device) -> bool:
    """Whether a device multiplies matrices of float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """
    Return a copy of a model whose linear layers compute in 8 bits: weights are rounded once, per output channel,
    activations in every batch, per token. It is what `from_pretrained` returns with a `quantization_config`, as
    `hf_mixer/benchmarking/README.md` shows.

    On a GPU, linear layers keep their type whose sizes are not multiples of 8 (int8) or 16 (float8), which its matrix
    units ask for: token mixing, where there are 196 patches.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. The patch embedding and the norms keep their type.
        dtype (`str`):
            `"int8"`, or `"float8"` (e4m3, for GPUs since Ada and Hopper; what is not in 8 bits is in bfloat16).

    Returns:
        [`~transformers.PreTrainedModel`]: on the device of `model`, in evaluation mode.

    Raises:
        `ValueError`: `dtype` is another one, `model` is quantized already, or its device has no float8.
        `ImportError`: torchao is not installed.
    """
    if dtype not in QUANTIZED:
        raise ValueError(f"`dtype` has to be one of {', '.join(QUANTIZED)}, got {dtype!r}")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("The model is quantized already: quantize the one it was made of, or evaluate it as it is.")
    if dtype == "float8" and not has_float8(model.device):
        raise ValueError(
            f"float8 needs a GPU of compute capability 8.9 (Ada, Hopper) or higher, the model is on {model.device}: take "
            "int8 or bfloat16."
        )
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
        )
    except ImportError as error:
        raise ImportError('8 bits need torchao: `pip install "hf_mixer[quantization]"`') from error

    # Settings of the compiler stay as they are: they would hold for all that is compiled later
    if dtype == "int8":
        how, multiple = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), 8
    else:
        how = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        multiple = 16
    left_out = None
    if model.device.type == "cuda":
        left_out = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and (module.in_features % multiple or module.out_features % multiple)
        ]
    config = TorchAoConfig(how, modules_to_not_convert=left_out)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(
            folder,
            dtype=torch.bfloat16 if dtype == "float8" else model.dtype,
            device_map={"": model.device},
            quantization_config=config,
        )
