# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the layers of a Mixer have learned."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .plots import DPI


def save_filters(path: str | os.PathLike, filters: np.ndarray, count: int = 128) -> Figure:
    """
    Save a picture of patch-embedding filters, the largest by norm first, each scaled to the full range of colours.

    Args:
        filters (`np.ndarray` of shape `(hidden_size, num_channels, patch_height, patch_width)`):
            The weights. Three channels are drawn in colour, one in grey, of any other number the mean.
        count (`int`, *optional*, defaults to 128):
            How many to draw at most.
    """
    tiles = filters[_largest(filters, count)]
    if tiles.shape[1] != 3:
        tiles = tiles.mean(axis=1, keepdims=True).repeat(3, axis=1)
    tiles = tiles.transpose(0, 2, 3, 1)
    low, high = tiles.min(axis=(1, 2, 3), keepdims=True), tiles.max(axis=(1, 2, 3), keepdims=True)
    tiles = (tiles - low) / np.where(high > low, high - low, 1)
    title = f"Patch embedding: {len(tiles)} of {len(filters)} filters, largest norm first"
    return _save_panels(path, [_lay_out(tiles, columns=16, background=1.0)], [title])


def save_token_mixing(path: str | os.PathLike, weights: Sequence[np.ndarray], count: int = 96) -> Figure:
    """
    Save a picture of what the token-mixing MLPs look at, as in figure 5 of the [MLP-Mixer
    paper](https://huggingface.co/papers/2105.01601): each hidden unit is an image of its input weights on the grid of
    patches. Per layer the units with the largest norm are drawn, in pairs of opposing phase (the two side by side), the
    pairs from low to high spatial frequency. Every unit is scaled on its own: white is zero, red positive, blue negative.

    Args:
        weights (`Sequence[np.ndarray]` of shape `(token_mlp_dim, num_rows, num_columns)`):
            The weights of the first linear layer of the token-mixing MLP, for each layer to draw.
        count (`int`, *optional*, defaults to 96):
            How many units to draw per layer at most.
    """
    mosaics, titles = [], []
    for layer, units in enumerate(weights, start=1):
        chosen = units[_largest(units, count)]
        chosen = chosen[pair_units(chosen)]
        peak = np.abs(chosen).max(axis=(1, 2), keepdims=True)
        mosaics.append(_lay_out(chosen / np.where(peak > 0, peak, 1), columns=8, background=np.nan))
        titles.append(f"Layer {layer}: {len(chosen)} of {len(units)} units")
    return _save_panels(path, mosaics, titles)


def pair_units(units: np.ndarray) -> list[int]:
    """
    Return an order of `units` of shape `(num_units, num_rows, num_columns)` in which pairs of opposing phase are
    neighbours: the two most opposite units (by cosine) make the first pair, the two most opposite of the rest the next
    one. The pairs are then sorted by the mean spatial frequency of their first unit; a unit that is left over goes last.
    """
    flat = units.reshape(len(units), -1)
    unit_vectors = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    cosines = unit_vectors @ unit_vectors.T
    left, pairs = set(range(len(units))), []
    first, second = np.triu_indices(len(units), k=1)
    for index in np.argsort(cosines[first, second], kind="stable"):
        pair = (int(first[index]), int(second[index]))
        if left.issuperset(pair):
            left -= set(pair)
            pairs.append(pair)

    power = np.abs(np.fft.fft2(units)) ** 2
    frequencies = np.hypot(np.fft.fftfreq(units.shape[1])[:, None], np.fft.fftfreq(units.shape[2]))
    mean_frequency = (power * frequencies).sum(axis=(1, 2)) / np.maximum(power.sum(axis=(1, 2)), 1e-12)
    pairs.sort(key=lambda pair: mean_frequency[pair[0]])
    return [unit for pair in pairs for unit in pair] + sorted(left)


def _largest(weights: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` weights with the largest norm, the largest first."""
    norms = np.linalg.norm(weights.reshape(len(weights), -1), axis=1)
    return np.argsort(-norms, kind="stable")[:count]


def _lay_out(tiles: np.ndarray, columns: int, background: float) -> np.ndarray:
    """
    Return one image of tiles of shape `(num_tiles, height, width)`, in [-1, 1], or `(num_tiles, height, width, 3)`, in
    [0, 1], in which every weight is a square of whole pixels.
    """
    gap = 3
    scale = max(1, 45 // max(tiles.shape[1:3]))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1:3]
    rows = math.ceil(len(tiles) / columns)
    mosaic = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:]), background)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _save_panels(path: str | os.PathLike, mosaics: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Save images side by side, each under its title and with its pixels as they are."""
    margin, header = 12, 34
    total_width = sum(mosaic.shape[1] for mosaic in mosaics) + margin * (len(mosaics) + 1)
    total_height = max(mosaic.shape[0] for mosaic in mosaics) + header + margin
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), facecolor="white")
    left = margin
    for mosaic, title in zip(mosaics, titles):
        height, width = mosaic.shape[:2]
        bottom = total_height - header - height
        axes = figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))
        axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, fontsize=11)
        left += width + margin
    figure.savefig(path, dpi=DPI)
    return figure
