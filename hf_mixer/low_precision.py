# SPDX-License-Identifier: Apache-2.0
"""Eight bits in place of wider types: integers by torchao, floats by kernels for Hopper GPUs."""

import copy
import math
import tempfile

import torch
from torch import nn

from transformers import PreTrainedModel, TorchAoConfig


QUANTIZED = ("int8", "float8")
# B/16 compiled runs at 2 times the speed of float32 on processors with these instructions, at 0.6 to 1.2 with AVX2 alone
VNNI = ("avx512_vnni", "avx_vnni")
# At batch 1, both compiled with freezing, S/16 (512 channels) runs at 1.7 times the speed of float32, 256 channels at 0.4
INT8_HIDDEN_SIZE = 512


def int8_problem(hidden_size: int, device: torch.device) -> str | None:
    """Say why a model would be slower in int8 than in float32, or return `None` where it is not."""
    if device.type != "cpu":
        return None
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in VNNI):
        return (
            "int8 by torchao is slower than float32 on this processor, which has no VNNI instructions: take float32, or "
            "int8 in ONNX Runtime or OpenVINO (`transformers.exporters`)"
        )
    if hidden_size < INT8_HIDDEN_SIZE:
        return (
            f"int8 by torchao is slower than float32 on a processor for a model of hidden_size={hidden_size}, it needs at "
            f"least {INT8_HIDDEN_SIZE}: take float32, or int8 in ONNX Runtime or OpenVINO (`transformers.exporters`)"
        )
    return None


def has_float8(device: torch.device) -> bool:
    """Whether the kernels that multiply matrices of float8 are made for a device."""
    # Triton takes its time to be imported
    from .kernels.gpu import HOPPER

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER


def quantize(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """
    Return a copy of a model that computes in 8 bits, whose weights are rounded once.

    int8 is for the linear layers. Activations are rounded in every batch, per token. It is what `from_pretrained` returns with
    a `quantization_config`, as `hf_mixer/benchmarking/README.md` shows. On a CPU, it is for processors with VNNI instructions
    (AVX-512 or AVX) and for models of at least 512 channels, and is refused elsewhere. It is faster than float32 there only
    when the model is compiled. On a GPU, linear layers keep their type whose sizes are not multiples of 8, which its matrix
    units ask for: token mixing, where there are 196 patches.

    float8 (e4m3) is for channel mixing on Hopper GPUs, in inference, with [kernels](kernels/README.md); the rest is bfloat16.
    The copy keeps its weights in bfloat16 as well, and saves these. What is saved is loaded as any other model, and
    quantized again.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        dtype (`str`):
            `"int8"` or `"float8"`.

    Returns:
        [`~transformers.PreTrainedModel`]: on the device of `model`, in evaluation mode.

    Raises:
        `ValueError`: `dtype` is another one, `model` is quantized already, it is on a CPU where int8 would be slower than
            float32, or float8 does not suit it: on another device than a Hopper GPU, with sizes that are not multiples of 16,
            another activation than GELU, hooks or adapters.
        `ImportError`: torchao (int8) or Triton (float8) is not installed.
    """
    if dtype not in QUANTIZED:
        raise ValueError(f"`dtype` has to be one of {', '.join(QUANTIZED)}, got {dtype!r}")
    from .kernels.float8 import NUM_TOKENS, natural_noise, use_float8, uses_float8

    if getattr(model, "hf_quantizer", None) is not None or uses_float8(model):
        raise ValueError("The model is quantized already: quantize the one it was made of, or evaluate it as it is.")
    if dtype == "float8":
        if not has_float8(model.device):
            raise ValueError(
                f"float8 needs a GPU of compute capability 9.0 (Hopper), the model is on {model.device}: take bfloat16."
            )
        narrow = copy.deepcopy(model).to(torch.bfloat16).eval()
        images = natural_noise(model.config, math.ceil(NUM_TOKENS / model.config.num_patches))
        return use_float8(narrow, images.to(model.device, torch.bfloat16))
    if (problem := int8_problem(model.config.hidden_size, model.device)) is not None:
        raise ValueError(problem)
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    except ImportError as error:
        raise ImportError('int8 needs torchao: `pip install "hf_mixer[quantization]"`') from error

    left_out = None
    if model.device.type == "cuda":
        left_out = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and (module.in_features % 8 or module.out_features % 8)
        ]
    # Settings of the compiler stay as they are: they would hold for all that is compiled later
    how = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    config = TorchAoConfig(how, modules_to_not_convert=left_out)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(
            folder, dtype=model.dtype, device_map={"": model.device}, quantization_config=config
        )
