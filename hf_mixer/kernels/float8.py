# SPDX-License-Identifier: Apache-2.0
"""Layers whose channels are mixed in float8, on a GPU, in inference."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration_mixer import MixerConfig, to_pair
from . import gpu
from .suitability import mixer_layers, unsuitable_sizes, warn_once


if gpu.HAS_TRITON:
    from .gpu_float8 import ALIGNMENT, FLOAT8, LARGEST, normal_factor

# Rounding makes what a weight is multiplied by larger, by so much at most
MARGIN = 1 + 2**-4
# Tokens that are looked at for each weight, some for each of the hidden units of B/16
NUM_TOKENS = 2**14
# Of the mean square, added to all: what is not in the images may be in others
DAMPING = 0.01


def use_float8(model: nn.Module, pixel_values: torch.Tensor | None = None) -> nn.Module:
    """
    Let the layers of a model mix channels in float8 (e4m3), and tokens with the kernels for the type of their weights.

    The weights are rounded now, one scale per output channel: change them later, and call this again. The layers keep them as
    they were, and saved files do not change.

    Args:
        model (`nn.Module`):
            As for [`~kernels.use_kernels`] on a GPU, in evaluation mode, with sizes that are multiples of 16.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
            Images for which the errors of the weights make up for each other, see [`round_with`]. Without them, each weight is
            rounded to the nearest.

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
    if pixel_values is None:
        for layer in layers.values():
            round_weights(layer)
    else:
        with contextlib.ExitStack() as stack, torch.no_grad():
            for layer in layers.values():
                layer.kernel = None
                stack.enter_context(rounding(layer))
            model(pixel_values)
    for layer in layers.values():
        layer.kernel = compute_layer
    return model


@contextlib.contextmanager
def rounding(layer: Any) -> Iterator[None]:
    """Round the weights of a layer when it is called, for its tokens."""
    moments: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> None:
        x = x.flatten(0, -2).float()
        moments.append(x.T @ x)

    norm, mlp = layer.channel_norm, layer.channel_mixing
    handles = [
        norm.register_forward_pre_hook(lambda module, args: look(F.layer_norm(args[0], module.normalized_shape))),
        mlp.activation_fn.register_forward_hook(lambda module, args, output: look(output)),
        layer.register_forward_hook(lambda module, args, output: round_weights(layer, *moments)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def natural_noise(config: MixerConfig, num_images: int) -> torch.Tensor:
    """
    Return random images with the spectrum of photographs, whose colors change together, the same in every call.

    Args:
        config (`MixerConfig`):
            The size and the channels.
        num_images (`int`):
            How many.

    Returns:
        `torch.Tensor` of shape `(num_images, num_channels, height, width)`: values from -1 to 1, in float32 on the CPU.
    """
    height, width = to_pair(config.image_size)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (rows**2 + columns**2).sqrt().clamp(min=0.5 / max(height, width))
    noise = torch.randn(num_images, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
    images = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**1.3, s=(height, width))
    images = images[:, :1] + 0.3 * images
    return (0.5 * images / images.std()).clamp(-1, 1)


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
def round_with(weight: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
    """
    Round a weight to float8, one column after the other: those that follow make up for the error, as in
    [GPTQ](https://huggingface.co/papers/2210.17323).

    Args:
        weight (`torch.Tensor` of shape `(num_features, num_inner)`):
            In float32, and within the range of float8.
        moments (`torch.Tensor` of shape `(num_inner, num_inner)`, *optional*):
            The products of the values that the weight is multiplied by, in sum over tokens. Without them, each value is rounded
            to the nearest.

    Returns:
        `torch.Tensor` of shape `(num_features, num_inner)`, in float8.
    """
    if moments is None:
        return weight.to(FLOAT8)
    moments = moments.double()
    moments.diagonal().add_(DAMPING * moments.diagonal().mean() + 1e-30)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper = torch.linalg.cholesky(inverse, upper=True)
    shares = (upper / upper.diagonal()[:, None]).float()
    weight = weight.clone()
    for column in range(weight.shape[1]):
        exact = weight[:, column].clone()
        weight[:, column] = exact.clamp(-LARGEST, LARGEST).to(FLOAT8)
        error = exact - weight[:, column]
        weight[:, column + 1 :].addr_(error, shares[column, column + 1 :], alpha=-1)
    return weight.to(FLOAT8)


@torch.no_grad()
def round_weights(layer: Any, moments: torch.Tensor | None = None, hidden_moments: torch.Tensor | None = None) -> None:
    """
    Keep the weights of channel mixing in float8 beside the others, in buffers that are not saved.

    The norm's weight and bias become a part of the first product, and the factors that keep the hidden units in range a part
    of the second. The moments are those of the normalized tokens and of the hidden units, see [`round_with`].
    """
    norm, mlp = layer.channel_norm, layer.channel_mixing
    num_channels = len(norm.weight)
    first, bias = mlp.fc1.weight.float() * norm.weight.float(), mlp.fc1.bias.float()
    bias = bias + mlp.fc1.weight.float() @ norm.bias.float()
    first_factor = factor_for(first.abs().amax(1))
    first = round_with(first * first_factor[:, None], moments)
    # |w x| <= |w| |x|, and |GELU(x)| <= |x|
    norms = (first.float() / first_factor[:, None]).norm(dim=1)
    hidden_factor = factor_for(MARGIN * math.sqrt(num_channels) * norms + bias.abs())
    second = mlp.fc2.weight.float() / hidden_factor
    second_factor = factor_for(second.abs().amax(1))
    if hidden_moments is not None:
        hidden_moments = hidden_factor[:, None] * hidden_moments * hidden_factor
    buffers = {
        "float8_weight_1": first,
        "float8_weight_2": round_with(second * second_factor[:, None], hidden_moments),
        "float8_factors_1": torch.stack([1 / (first_factor * normal_factor(num_channels)), bias, hidden_factor / 2]),
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
