# SPDX-License-Identifier: Apache-2.0
"""Layers whose channels are mixed in float8, on a GPU, in inference."""

import math
from typing import Any

import torch
from torch import nn

from . import gpu
from .suitability import mixer_layers, unsuitable_sizes, warn_once


if gpu.HAS_TRITON:
    from .gpu_float8 import ALIGNMENT, FLOAT8, LARGEST, normal_factor

# Two roundings make a product larger, by 2^-4 each
MARGIN = (1 + 2**-4) ** 2


def use_float8(model: nn.Module) -> nn.Module:
    """
    Let the layers of a model mix channels in float8 (e4m3), and tokens with the kernels for the type of their weights.

    The weights are rounded now, one scale per output channel: change them later, and call this again. The layers keep them as
    they were, and saved files do not change.

    Args:
        model (`nn.Module`):
            As for [`~kernels.use_kernels`] on a GPU, with sizes that are multiples of 16.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`, or one that the kernels do not suit; then no layer has changed.
        `ImportError`: Triton is missing.
    """
    gpu.require()
    layers = mixer_layers(model)
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers: float8 is for Mixers only.")
    for name, layer in layers.items():
        reason = unsupported_layer_reason(layer)
        if reason is not None:
            raise ValueError(f"float8 cannot be used: `{name or type(layer).__name__}` {reason}.")
    for layer in layers.values():
        round_weights(layer)
        layer.kernel = compute_layer
    return model


def uses_float8(model: nn.Module) -> bool:
    """Whether some layer of a model mixes channels in float8."""
    return any(getattr(layer, "kernel", None) is compute_layer for layer in mixer_layers(model).values())


def unsupported_layer_reason(layer: Any) -> str | None:
    """Say why the kernels do not suit a layer, whatever its tokens are, or return `None` where they do."""
    return gpu.unsupported_layer_reason(layer) or unsuitable_sizes(layer, ALIGNMENT)


def factor_for(bound: torch.Tensor) -> torch.Tensor:
    """Return the largest powers of two that keep values up to `bound` within float8."""
    return torch.exp2(torch.floor(torch.log2(LARGEST / bound.clamp(min=1e-30))))


@torch.no_grad()
def round_weights(layer: Any) -> None:
    """
    Keep the weights of channel mixing in float8 beside the others, in buffers that are not saved.

    The norm's weight and bias become a part of the first product, and the factors that keep the hidden units in range a part
    of the second.
    """
    norm, mlp = layer.channel_norm, layer.channel_mixing
    num_channels = len(norm.weight)
    first, bias = mlp.fc1.weight.float() * norm.weight.float(), mlp.fc1.bias.float()
    bias = bias + mlp.fc1.weight.float() @ norm.bias.float()
    # |w x| <= |w| |x|, and |GELU(x)| <= |x|
    hidden_factor = factor_for(MARGIN * math.sqrt(num_channels) * first.norm(dim=1) + bias.abs())
    second = mlp.fc2.weight.float() / hidden_factor
    first_factor, second_factor = (factor_for(weight.abs().amax(1)) for weight in (first, second))
    scale_1 = 1 / (first_factor * normal_factor(num_channels))
    buffers = {
        "float8_weight_1": (first * first_factor[:, None]).to(FLOAT8),
        "float8_weight_2": (second * second_factor[:, None]).to(FLOAT8),
        "float8_factors_1": torch.stack([scale_1, bias, hidden_factor / 2]),
        "float8_factors_2": torch.stack([1 / second_factor, mlp.fc2.bias.float()]),
    }
    for name, buffer in buffers.items():
        # As bytes: `model.to(dtype)` would bring floats into that type
        mlp.register_buffer(name, buffer.view(torch.uint8), persistent=False)


def compute_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return what a layer computes, or `None` where it has to do it itself, with a warning."""
    reason = unsupported_layer_reason(layer) or gpu.unsupported_batch_reason(layer, hidden_states)
    if reason is not None:
        warn_once(reason)
        return None
    mlp, linear = layer.channel_mixing, torch.ops.hf_mixer.float8_linear
    hidden_states = gpu.mix(layer.token_norm, layer.token_mixing, hidden_states, over_tokens=True)
    normalized = torch.ops.hf_mixer.float8_normalize(hidden_states, layer.channel_norm.eps)
    hidden = linear(normalized, mlp.float8_weight_1, mlp.float8_factors_1, None)
    return linear(hidden, mlp.float8_weight_2, mlp.float8_factors_2, hidden_states)
