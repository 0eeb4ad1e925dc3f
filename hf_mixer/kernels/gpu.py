# SPDX-License-Identifier: Apache-2.0
"""A layer on a GPU, in inference, with kernels written in Triton."""

from typing import Any

import torch
from torch import nn

from transformers.utils import is_triton_available

from ..layers_mixer import GELU_APPROXIMATIONS
from .suitability import (
    unsuitable_call,
    unsuitable_sizes,
    unsuitable_structure,
    unsuitable_types,
    warn_once,
    weights_of,
)


HAS_TRITON, INTERPRETED = is_triton_available(), False
if HAS_TRITON:
    from . import gpu_normalization  # noqa: F401  which registers an operator
    from .gpu_launching import DTYPES, INTERPRETED
    from .gpu_linear import ALIGNMENT

# The compute capability (major version) of the GPUs that the kernels are made for, and for whose shared memory
HOPPER = 9


def require() -> None:
    """Raise `ImportError` where Triton is missing."""
    if not HAS_TRITON:
        raise ImportError("The kernels need Triton: `pip install triton` (Linux with a CUDA device).")


def compute_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return what a layer computes, or `None` where it has to do it itself, with a warning."""
    reason = unsupported_layer_reason(layer) or unsupported_batch_reason(layer, hidden_states)
    if reason is not None:
        warn_once(reason)
        return None
    hidden_states = mix(layer.token_norm, layer.token_mixing, hidden_states, over_tokens=True)
    return mix(layer.channel_norm, layer.channel_mixing, hidden_states, over_tokens=False)


def mix(norm: nn.LayerNorm, mlp: Any, hidden_states: torch.Tensor, over_tokens: bool) -> torch.Tensor:
    approximation = GELU_APPROXIMATIONS[type(mlp.activation_fn)]
    normalized = torch.ops.hf_mixer.layer_norm(hidden_states, norm.weight, norm.bias, norm.eps)
    hidden = torch.ops.hf_mixer.linear(normalized, mlp.fc1.weight, mlp.fc1.bias, None, approximation, over_tokens)
    return torch.ops.hf_mixer.linear(hidden, mlp.fc2.weight, mlp.fc2.bias, hidden_states, None, over_tokens)


def unsupported_layer_reason(layer: Any) -> str | None:
    """Say why the kernels do not suit a layer, whatever its tokens are, or return `None` where they do."""
    reason = unsuitable_structure(layer)
    if reason is not None:
        return reason
    if not HAS_TRITON:
        return "needs Triton for that"
    weight = weights_of(layer)[0]
    if not (weight.is_cuda or INTERPRETED):
        way_out = "call `model.to('cuda')` first" if torch.cuda.is_available() else "there is none here"
        return f"is on {weight.device}, the kernels need a CUDA device: {way_out}"
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] != HOPPER:
        return "is on a GPU of another compute capability than 9.0, the kernels are for Hopper (H100, H200)"
    return unsuitable_types(layer, DTYPES) or unsuitable_sizes(layer, ALIGNMENT // weight.element_size())


def unsupported_batch_reason(layer: Any, hidden_states: torch.Tensor) -> str | None:
    """Say why the kernels cannot take these tokens, or return `None` where they can."""
    if layer.training or any(module.training for module in layer.modules()):
        return "is in training mode, and the kernels are for inference: call `model.eval()`"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden_states, *layer.parameters())):
        return "computes gradients, and the kernels are for inference: use `torch.inference_mode()`"
    if hidden_states.dtype != layer.token_norm.weight.dtype or torch.is_autocast_enabled(hidden_states.device.type):
        return "computes under autocast, or in another type than the weights: load the model in bfloat16 or float16"
    return unsuitable_call(layer, hidden_states)
