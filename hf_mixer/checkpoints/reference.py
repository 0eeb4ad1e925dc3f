# SPDX-License-Identifier: Apache-2.0
"""
The forward pass of the original implementations in plain NumPy and float64, from a checkpoint's own tensors.

It shares nothing with our network, and neither transposes nor renames anything first, so that it finds a conversion that
went wrong.
"""

import math

import numpy as np
import torch

from ..configuration_mixer import MixerConfig, to_pair
from .layouts import STEM
from .sources import Source


_erf = np.frompyfunc(math.erf, 1, 1)


def deterministic_image(config: MixerConfig) -> np.ndarray:
    """Return an image of shape `(num_channels, height, width)` in [-1, 1], without symmetries, the same every time."""
    shape = (config.num_channels, *to_pair(config.image_size))
    return np.sin(np.arange(math.prod(shape)) ** 1.5).reshape(shape)


def reference_forward(source: Source, image: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    """
    Compute what the source computes for a normalized image of shape `(num_channels, height, width)`: the logits, or the
    features of a source without a classifier.
    """
    layout = source.layout

    def linear(module, inputs):
        weight, bias = (_array(source, f"{module}.{name}") for name in ("weight", "bias"))
        return inputs @ (weight if layout.transposed else weight.T) + bias

    def norm(module, inputs):
        scale, bias = (_array(source, f"{module}.{name}") for name in ("weight", "bias"))
        centered = inputs - inputs.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + layout.layer_norm_eps) * scale + bias

    def mlp(module, inputs):
        return linear(f"{module}.fc2", _gelu(linear(f"{module}.fc1", inputs), layout.hidden_act))

    channels, height, width = image.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    patches = image.astype(np.float64).reshape(channels, rows, patch_size[0], columns, patch_size[1])
    stem = _array(source, f"{STEM}.weight")
    if layout.stem == "HWIO":
        x = patches.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1) @ stem.reshape(-1, stem.shape[-1])
    else:
        x = patches.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)
        x = x @ (stem.reshape(len(stem), -1).T if layout.stem == "OIHW" else stem)
    x = x + _array(source, f"{STEM}.bias")

    for index in range(source.num_layers):
        x = x + mlp(f"mixer.layers.{index}.token_mixing", norm(f"mixer.layers.{index}.token_norm", x).T).T
        x = x + mlp(f"mixer.layers.{index}.channel_mixing", norm(f"mixer.layers.{index}.channel_norm", x))
    features = norm("mixer.norm", x).mean(0)
    return linear("classifier", features) if source.has_head else features


def _array(source: Source, ours: str) -> np.ndarray:
    return source.tensors[source.key(ours)].to(torch.float64).numpy()


def _gelu(x: np.ndarray, name: str) -> np.ndarray:
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), np.float64))
