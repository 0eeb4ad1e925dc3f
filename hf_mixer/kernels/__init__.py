# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for GPUs, written in Triton, for the models that ask for them: see the README beside this file."""

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from transformers.utils import is_triton_available, logging

from ..layers_mixer import GELU_APPROXIMATIONS, MixerLayer, is_plain, is_untouched


HAS_TRITON = is_triton_available()
if HAS_TRITON:
    from .launching import DTYPES, INTERPRETED
    from .token_mixing import MAX_PATCHES

logger = logging.get_logger(__name__)


def use_kernels(model: nn.Module) -> nn.Module:
    """
    Let the layers of a model mix their tokens with one fused operator, `torch.ops.hf_mixer.token_mixing`: LayerNorm,
    both products, GELU and the residual connection, forward and backward.

    The layers keep their weights, saved files do not change, and neither do other models. It works in inference and in
    training, under autocast, with gradient checkpointing and under `torch.compile`. A batch that the operator does not
    take is computed by the layer's own code, and a warning says why, once for each reason.

    Args:
        model (`nn.Module`):
            A Mixer of any class, also from remote code, or a module that holds some, on a CUDA device. Its layers have
            at most 256 patches, `hidden_act` `"gelu"` or `"gelu_pytorch_tanh"`, no dropout, no hooks, adapters or
            quantized weights, and weights of type bfloat16, float16, or float32 for autocast. Shard it afterwards,
            with FSDP for instance.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`, or one that the operator cannot replace; then no layer has
            changed.
        `ImportError`: Triton is not installed.
    """
    # By name: a model from remote code has a class of its own
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if any(parent.__name__ == MixerLayer.__name__ for parent in type(module).__mro__)
    }
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers: the kernels are for Mixers only.")
    if not HAS_TRITON:
        raise ImportError("The kernels need Triton: `pip install triton` (Linux with a CUDA device).")
    for name, layer in layers.items():
        reason = unsupported_layer_reason(layer)
        if reason is not None:
            raise ValueError(f"The kernels cannot be used: `{name or type(layer).__name__}` {reason}.")
    for layer in layers.values():
        layer.token_kernel = mix_tokens
    return model


def mix_tokens(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return what the `mix_tokens` of a layer computes, or `None` where the layer has to do it, with a warning."""
    reason = unsupported_layer_reason(layer) or unsupported_batch_reason(layer, hidden_states)
    if reason is not None:
        warn_once(f"Tokens are mixed without the kernels: a layer {reason}.")
        return None

    norm, mlp = layer.token_norm, layer.token_mixing
    dtype = operand_dtype(mlp, hidden_states)
    weights = [tensor.to(dtype) for tensor in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)]
    scale = None
    if layer.drop_path.training and layer.drop_path.drop_prob > 0:
        scale = layer.drop_path(torch.ones(hidden_states.shape[0], 1, 1, device=hidden_states.device)).flatten()
    tanh = GELU_APPROXIMATIONS[type(mlp.activation_fn)] == "tanh"
    return torch.ops.hf_mixer.token_mixing(hidden_states, norm.weight, norm.bias, *weights, scale, norm.eps, tanh)[0]


# Under `torch.compile` it warns while the graph is captured, which a plain call would break
@torch.compiler.assume_constant_result
def warn_once(message: str) -> None:
    logger.warning_once(message)


def operand_dtype(mlp: Any, hidden_states: torch.Tensor) -> torch.dtype:
    """Return the type that matrix products have here: that of the weights, or of autocast."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return mlp.fc1.weight.dtype


def unsupported_layer_reason(layer: Any) -> str | None:
    """Say why the operator cannot mix the tokens of a layer, whatever they are, or return `None` where it can."""
    if not hasattr(layer, "token_kernel"):
        return "comes from code without kernels: save the model again with this version of hf_mixer"
    mlp, drop_path = layer.token_mixing, layer.drop_path
    # By name: remote code has classes of its own
    if type(mlp).__name__ != "MixerTokenMLP" or type(drop_path).__name__ != "MixerDropPath":
        return "holds other modules than a `MixerLayer`"
    if type(mlp.activation_fn) not in GELU_APPROXIMATIONS:
        return f"has the activation {type(mlp.activation_fn).__name__}, expected `gelu` or `gelu_pytorch_tanh`"
    if type(mlp.dropout) is not nn.Dropout or mlp.dropout.p > 0:
        return "has dropout, the kernels have none: load the model with `hidden_dropout_prob=0.0`"
    for name, module, expected in (
        ("token_norm", layer.token_norm, nn.LayerNorm),
        ("token_mixing.fc1", mlp.fc1, nn.Linear),
        ("token_mixing.fc2", mlp.fc2, nn.Linear),
    ):
        if not is_plain(module, expected):
            return (
                f"has a `{name}` with hooks, an adapter, or quantized, sharded or replaced weights, expected a plain "
                f"`nn.{expected.__name__}`: remove them, or shard the model afterwards"
            )
    if not all(is_untouched(module) for module in (mlp, mlp.dropout, mlp.activation_fn, drop_path)):
        return "has hooks, or a `forward` set by another library, within its token mixing: remove them"
    if not HAS_TRITON:
        return "needs Triton for that"
    weight = mlp.fc1.weight
    if weight.shape[1] > MAX_PATCHES:
        return f"mixes {weight.shape[1]} patches, the kernels at most {MAX_PATCHES}: take larger patches"
    if not (weight.is_cuda or INTERPRETED):
        way_out = "call `model.to('cuda')` first" if torch.cuda.is_available() else "there is none here"
        return f"is on {weight.device}, the kernels need a CUDA device: {way_out}"
    # Autocast narrows float32
    if weight.dtype not in (*DTYPES, torch.float32):
        return f"has weights of type {weight.dtype}, expected {', '.join(map(str, DTYPES))}"
    return None


def unsupported_batch_reason(layer: Any, hidden_states: torch.Tensor) -> str | None:
    """Say why the operator cannot mix these tokens, or return `None` where it can."""
    norm, mlp = layer.token_norm, layer.token_mixing
    dtype = operand_dtype(mlp, hidden_states)
    if dtype not in DTYPES:
        return f"computes in {dtype}, expected {' or '.join(map(str, DTYPES))}: load it in that type, or use autocast"
    if hidden_states.shape[0] == 0:
        return "has an empty batch"
    if torch.compiler.is_exporting():
        return "is exported, also for machines without the kernels"
    if torch.compiler.is_compiling():
        return None
    # Neither the transforms of `torch.func` nor forward-mode differentiation have a rule for the operator
    tensors = (hidden_states, norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    for tensor in tensors:
        if torch.func.debug_unwrap(tensor) is not tensor or forward_ad.unpack_dual(tensor).tangent is not None:
            return "is within a transform of `torch.func` or in forward-mode differentiation"
    return None


__all__ = ["use_kernels"]
