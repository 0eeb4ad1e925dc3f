# SPDX-License-Identifier: Apache-2.0
"""Pictures of results."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image


DPI = 100


def save_contact_sheet(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    predictions: Sequence[str],
    labels: Sequence[str] | None = None,
    columns: int = 12,
) -> None:
    """
    Save a picture of images with the label predicted for each; wrong ones are red and name the right label.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        images (`Sequence[Image.Image]`):
            The images, of any size.
        predictions (`Sequence[str]`):
            The label predicted for each.
        labels (`Sequence[str]`, *optional*):
            The right labels, where they are known.
        columns (`int`, *optional*, defaults to 12):
            Number of images side by side.
    """
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for index, axes in enumerate(grid):
        axes.set_axis_off()
        if index < len(images):
            label = predictions[index] if labels is None else labels[index]
            right = predictions[index] == label
            title = predictions[index] if right else f"{predictions[index]} (is {label})"
            axes.imshow(images[index], cmap="gray")
            axes.set_title(title, color="black" if right else "red", fontsize=9)
    figure.savefig(path, dpi=DPI)


def save_confusion_matrix(path: str | os.PathLike, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    """
    Save a picture of a confusion matrix, coloured by the share of each true label's images; with up to 20 labels the
    numbers of images stand in the cells, with more than 60 the names are left out.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        matrix (`Sequence[Sequence[int]]` of shape `(num_labels, num_labels)`):
            Number of images, true labels in rows, predicted ones in columns.
        labels (`Sequence[str]`):
            The names of the labels.
    """
    draw_confusion_matrix(np.asarray(matrix), labels).savefig(path, dpi=DPI)


def draw_confusion_matrix(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    num_labels, total = len(labels), int(matrix.sum())
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # At least one pixel for every cell
    size = max(0.55 * min(num_labels, 20), 0.16 * min(num_labels, 60), num_labels / DPI, 4)
    figure = Figure(figsize=(size + 2.5, size + 1.5), layout="constrained")
    axes = figure.subplots()
    # A root makes the few images off the diagonal visible
    norm = PowerNorm(0.5 if num_labels <= 60 else 0.25, 0, 1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the true label's images")
    if num_labels <= 60:
        names = [label if len(label) <= 20 else f"{label[:19]}\N{HORIZONTAL ELLIPSIS}" for label in labels]
        fontsize = 10 if num_labels <= 20 else 7
        fits = 0.1 * max(map(len, names)) < size / num_labels
        # A label may hold dollar signs, which would start a formula
        axes.set_xticks(range(num_labels), names, rotation=0 if fits else 90, fontsize=fontsize, parse_math=False)
        axes.set_yticks(range(num_labels), names, fontsize=fontsize, parse_math=False)
    if num_labels <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.4 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{np.trace(matrix) / max(total, 1):.1%} of {total:,} images right")
    return figure


def save_calibration(path: str | os.PathLike, bins: Sequence[dict[str, float] | None], ece: float) -> None:
    """
    Save a reliability diagram: how often predictions are right at each confidence, and how many have it.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        bins (`Sequence[dict[str, float] | None]`):
            The bins of `calibration_bins`.
        ece (`float`):
            The expected calibration error.
    """
    draw_calibration(bins, ece).savefig(path, dpi=DPI)


def draw_calibration(bins: Sequence[dict[str, float] | None], ece: float) -> Figure:
    width = 1 / len(bins)
    filled = [(width * (index + 0.5), entry) for index, entry in enumerate(bins) if entry is not None]
    centers = [center for center, _ in filled]
    accuracies = np.array([entry["accuracy"] for _, entry in filled])
    confidences = np.array([entry["confidence"] for _, entry in filled])
    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.bar(centers, accuracies, width, color="#9ecae1", edgecolor="white", label="accuracy")
    gaps = confidences - accuracies
    top.bar(
        centers,
        np.abs(gaps),
        width,
        bottom=np.minimum(accuracies, confidences),
        color="tab:red",
        alpha=0.35,
        edgecolor="tab:red",
        hatch="///",
        label="gap to the confidence",
    )
    top.plot([0, 1], [0, 1], "--", color="gray", label="perfect calibration")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    top.legend(loc="upper left")
    top.set_title(f"Expected calibration error {ece:.2%}")
    bottom.bar(centers, [entry["count"] for _, entry in filled], width, color="tab:gray", edgecolor="white")
    bottom.set(xlabel="confidence", ylabel="images")
    bottom.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def save_training_curves(path: str | os.PathLike, log_history: Sequence[dict]) -> None:
    """
    Save the course of a training: losses, accuracy and learning rate over the epochs, as far as they were logged.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        log_history (`Sequence[dict]`):
            `trainer.state.log_history`, or that of `trainer_state.json`.
    """
    draw_training_curves(log_history).savefig(path, dpi=DPI)


def draw_training_curves(log_history: Sequence[dict]) -> Figure:
    panels = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "accuracy": {"eval_accuracy": "validation"},
        "learning rate": {"learning_rate": "learning rate"},
    }
    curves: dict[str, dict] = {}
    last_epoch = max((entry["epoch"] for entry in log_history if "epoch" in entry), default=0)
    for panel, keys in panels.items():
        for key, name in keys.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry and "epoch" in entry]
            if points:
                curves.setdefault(panel, {})[name] = points

    figure = Figure(figsize=(4.5 * max(len(curves), 1), 3.5), layout="constrained")
    if not curves:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center")
        return figure
    for axes, (panel, lines) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items()):
        for name, points in lines.items():
            color = "tab:orange" if name == "validation" else "tab:blue"
            # A single point makes no line
            axes.plot(*zip(*points), color=color, label=name, marker="o" if len(points) < 30 else None, markersize=3)
        axes.set(xlabel="epoch", title=panel, xlim=(0, 1.02 * last_epoch or 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.3)
        if panel == "accuracy":
            (points,) = lines.values()
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.set_title(f"accuracy (last: {points[-1][1]:.1%})")
        if len(lines) > 1:
            axes.legend()
    return figure


def save_filters(path: str | os.PathLike, filters: np.ndarray, count: int = 128) -> None:
    """
    Save a picture of patch-embedding filters, the largest by norm first, each scaled to the full range of colours.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        filters (`np.ndarray` of shape `(hidden_size, num_channels, patch_height, patch_width)`):
            The weights. Three channels are drawn in colour, one in grey, of any other number the mean.
        count (`int`, *optional*, defaults to 128):
            How many to draw at most.
    """
    draw_filters(np.asarray(filters), count).savefig(path, dpi=DPI)


def draw_filters(filters: np.ndarray, count: int = 128) -> Figure:
    chosen = filters[_largest(filters, count)]
    if chosen.shape[1] == 3:
        tiles = chosen.transpose(0, 2, 3, 1)
    else:
        tiles = chosen.mean(axis=1, keepdims=True).repeat(3, axis=1).transpose(0, 2, 3, 1)
    low, high = tiles.min(axis=(1, 2, 3), keepdims=True), tiles.max(axis=(1, 2, 3), keepdims=True)
    tiles = (tiles - low) / np.where(high > low, high - low, 1)
    title = f"Patch embedding: {len(tiles)} of {len(filters)} filters, largest norm first"
    return _draw_tiles([tiles], [title], columns=16, background=1.0)


def save_token_mixing(path: str | os.PathLike, weights: Sequence[np.ndarray], count: int = 96) -> None:
    """
    Save a picture of what the token-mixing MLPs look at, as in figure 5 of the [MLP-Mixer
    paper](https://huggingface.co/papers/2105.01601): each hidden unit is an image of its input weights on the grid of
    patches. Per layer the units with the largest norm are drawn, in pairs of opposing phase (the two side by side), the
    pairs from low to high spatial frequency. Every unit is scaled on its own: white is zero, red positive, blue negative.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        weights (`Sequence[np.ndarray]` of shape `(token_mlp_dim, num_rows, num_columns)`):
            The weights of the first linear layer of the token-mixing MLP, for each layer to draw.
        count (`int`, *optional*, defaults to 96):
            How many units to draw per layer at most.
    """
    draw_token_mixing([np.asarray(units) for units in weights], count).savefig(path, dpi=DPI)


def draw_token_mixing(weights: Sequence[np.ndarray], count: int = 96) -> Figure:
    tiles, titles = [], []
    for layer, units in enumerate(weights, start=1):
        chosen = units[_largest(units, count)]
        chosen = chosen[pair_units(chosen)]
        peak = np.abs(chosen).max(axis=(1, 2), keepdims=True)
        tiles.append(chosen / np.where(peak > 0, peak, 1))
        titles.append(f"Layer {layer}: {len(chosen)} of {len(units)} units")
    return _draw_tiles(tiles, titles, columns=8, background=np.nan)


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


def _draw_tiles(panels: Sequence[np.ndarray], titles: Sequence[str], columns: int, background: float) -> Figure:
    """
    Lay tiles of shape `(num_tiles, height, width)`, in [-1, 1], or `(num_tiles, height, width, 3)`, in [0, 1], out in
    panels side by side, every weight a square of whole pixels.
    """
    gap, margin, header = 3, 12, 34
    mosaics = []
    for tiles in panels:
        scale = max(1, 45 // max(tiles.shape[1:3]))
        tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
        height, width = tiles.shape[1:3]
        rows = math.ceil(len(tiles) / columns)
        shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
        mosaic = np.full(shape, background)
        for index, tile in enumerate(tiles):
            top, left = index // columns * (height + gap), index % columns * (width + gap)
            mosaic[top : top + height, left : left + width] = tile
        mosaics.append(mosaic)

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
    return figure


def save_speed_bars(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """
    Save a picture of a benchmark: one bar per row, as long as its share of the device's limit, grouped by case.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        rows (`Sequence[dict]`):
            Rows of `hf_mixer.benchmarking.measure`.
    """
    implementations = list(dict.fromkeys(row["implementation"] for row in rows))
    cases = list(dict.fromkeys((row["variant"], row["mode"], row["dtype"], row["batch_size"]) for row in rows))
    figure = Figure(figsize=(9, 1 + 0.3 * (len(rows) + 2 * len(cases))), layout="constrained")
    axes = figure.subplots()
    ticks, labels, named = [], [], set()
    position = 0.0
    for case in cases:
        axes.text(0, position, "{} {}, {}, batch {}".format(*case), fontweight="bold", va="center", fontsize=9)
        for row in rows:
            if (row["variant"], row["mode"], row["dtype"], row["batch_size"]) != case:
                continue
            position += 1
            name = row["implementation"]
            color = f"C{implementations.index(name)}"
            axes.barh(position, 100 * row["limit"], color=color, label=None if name in named else name)
            axes.text(
                100 * row["limit"], position, f" {row['images_per_second']:,.0f} images/s", va="center", fontsize=8
            )
            named.add(name)
            ticks.append(position)
            labels.append(row["execution"])
        position += 1.5
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(position - 0.5, -1)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("% of the device's limit")
    if named:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(named), frameon=False)
    figure.savefig(path, dpi=100)
