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
    from . import normalization  # noqa: F401  which registers an operator
    from .launching import DTYPES, INTERPRETED
    from .linear import ALIGNMENT

logger = logging.get_logger(__name__)

# The compute capability (major version) of the GPUs that the kernels are made for, and for whose shared memory
HOPPER = 9


def use_kernels(model: nn.Module) -> nn.Module:
    """
    Let the layers of a model compute with fused kernels in inference: a matrix product with its bias and GELU, another
    with its bias and the residual connection, and LayerNorm.

    The layers keep their weights, saved files do not change, and neither do other models. What the kernels do not take, a
    step of training for instance, is computed by the layer's own code, and a warning says why, once for each reason.

    Args:
        model (`nn.Module`):
            A Mixer of any class, also from remote code, or a module that holds some, on a CUDA device of compute capability
            9.0 (Hopper, such as H100 and H200). Its layers have `hidden_act` `"gelu"` or `"gelu_pytorch_tanh"`, `hidden_size`,
            `token_mlp_dim` and `channel_mlp_dim` in multiples of 8, no hooks, adapters or quantized weights, and weights of
            type bfloat16 or float16.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`, or one that the kernels do not suit; then no layer has changed.
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
        layer.kernel = compute_layer
    return model


def compute_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return what a layer computes, or `None` where it has to do it itself, with a warning."""
    reason = unsupported_layer_reason(layer) or unsupported_batch_reason(layer, hidden_states)
    if reason is not None:
        warn_once(f"A layer is computed without the kernels: it {reason}.")
        return None
    hidden_states = mix(layer.token_norm, layer.token_mixing, hidden_states, over_tokens=True)
    return mix(layer.channel_norm, layer.channel_mixing, hidden_states, over_tokens=False)


def mix(norm: nn.LayerNorm, mlp: Any, hidden_states: torch.Tensor, over_tokens: bool) -> torch.Tensor:
    approximation = GELU_APPROXIMATIONS[type(mlp.activation_fn)]
    normalized = torch.ops.hf_mixer.layer_norm(hidden_states, norm.weight, norm.bias, norm.eps)
    hidden = torch.ops.hf_mixer.linear(normalized, mlp.fc1.weight, mlp.fc1.bias, None, approximation, over_tokens)
    return torch.ops.hf_mixer.linear(hidden, mlp.fc2.weight, mlp.fc2.bias, hidden_states, None, over_tokens)


# Under `torch.compile` it warns while the graph is captured, which a plain call would break
@torch.compiler.assume_constant_result
def warn_once(message: str) -> None:
    logger.warning_once(message)


def parts_of(layer: Any) -> dict[str, tuple[nn.Module, type[nn.Module]]]:
    """Return the modules whose weights the kernels read, by name, and what they have to be."""
    token_mlp, channel_mlp = layer.token_mixing, layer.channel_mixing
    return {
        "token_norm": (layer.token_norm, nn.LayerNorm),
        "token_mixing.fc1": (token_mlp.fc1, nn.Linear),
        "token_mixing.fc2": (token_mlp.fc2, nn.Linear),
        "channel_norm": (layer.channel_norm, nn.LayerNorm),
        "channel_mixing.fc1": (channel_mlp.fc1, nn.Linear),
        "channel_mixing.fc2": (channel_mlp.fc2, nn.Linear),
    }


def unsupported_layer_reason(layer: Any) -> str | None:
    """Say why the kernels do not suit a layer, whatever its tokens are, or return `None` where they do."""
    if not hasattr(layer, "kernel"):
        return "comes from code without kernels: save the model again with this version of hf_mixer"
    mlps = (layer.token_mixing, layer.channel_mixing)
    # By name: remote code has classes of its own
    if [type(mlp).__name__ for mlp in mlps] != ["MixerTokenMLP", "MixerMLP"]:
        return "holds other modules than a `MixerLayer`"
    parts = parts_of(layer)
    for name, (module, expected) in parts.items():
        if not is_plain(module, expected):
            return (
                f"has a `{name}` with hooks, an adapter, or quantized, sharded or replaced weights, expected a plain "
                f"`nn.{expected.__name__}`: remove them, or go without the kernels"
            )
    for mlp in mlps:
        if type(mlp.activation_fn) not in GELU_APPROXIMATIONS:
            return f"has the activation {type(mlp.activation_fn).__name__}, expected `gelu` or `gelu_pytorch_tanh`"
        if type(mlp.dropout) is not nn.Dropout or not all(
            is_untouched(module) for module in (mlp, mlp.dropout, mlp.activation_fn)
        ):
            return "has hooks, replaced modules, or a `forward` set by another library, within its mixing: remove them"
    if not HAS_TRITON:
        return "needs Triton for that"
    weights: list[Any] = [module.weight for module, _ in parts.values()]
    if not (weights[0].is_cuda or INTERPRETED):
        way_out = "call `model.to('cuda')` first" if torch.cuda.is_available() else "there is none here"
        return f"is on {weights[0].device}, the kernels need a CUDA device: {way_out}"
    if weights[0].is_cuda and torch.cuda.get_device_capability(weights[0].device)[0] != HOPPER:
        return "is on a GPU of another compute capability than 9.0, the kernels are for Hopper (H100, H200)"
    dtypes = {weight.dtype for weight in weights}
    if len(dtypes) > 1 or weights[0].dtype not in DTYPES:
        return f"has weights of type {', '.join(map(str, dtypes))}, expected one of {', '.join(map(str, DTYPES))}"
    multiple = ALIGNMENT // weights[0].element_size()
    hidden_size, token_mlp_dim = layer.token_norm.weight.shape[0], layer.token_mixing.fc1.out_features
    sizes = (hidden_size, token_mlp_dim, layer.channel_mixing.fc1.out_features)
    if any(size % multiple for size in sizes):
        return (
            f"has hidden_size, token_mlp_dim and channel_mlp_dim of {', '.join(map(str, sizes))}, expected multiples of "
            f"{multiple}"
        )
    return None


def unsupported_batch_reason(layer: Any, hidden_states: torch.Tensor) -> str | None:
    """Say why the kernels cannot take these tokens, or return `None` where they can."""
    tensors = [hidden_states, *layer.parameters()]
    if layer.training or any(module.training for module in layer.modules()):
        return "is in training mode, and the kernels are for inference: call `model.eval()`"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "computes gradients, and the kernels are for inference: use `torch.inference_mode()`"
    if hidden_states.dtype != layer.token_norm.weight.dtype or torch.is_autocast_enabled(hidden_states.device.type):
        return "computes under autocast, or in another type than the weights: load the model in bfloat16 or float16"
    if hidden_states.shape[0] == 0:
        return "has an empty batch"
    if torch.compiler.is_dynamo_compiling():
        return None  # Dynamo of torch 2.11 says of everything that it is exported
    if torch.compiler.is_exporting():
        return "is exported, also for machines without the kernels"
    # Neither the transforms of `torch.func` nor forward-mode differentiation have a rule for the operators
    for tensor in tensors:
        if torch.func.debug_unwrap(tensor) is not tensor or forward_ad.unpack_dual(tensor).tangent is not None:
            return "is within a transform of `torch.func` or in forward-mode differentiation"
    return None


__all__ = ["use_kernels"]
