# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


DPI = 100
# With more labels, the numbers of images and then the names would overlap
MAX_LABELS_WITH_COUNTS = 20
MAX_LABELS_WITH_NAMES = 60


def save_confusion_matrix(path: str | os.PathLike, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """
    Save a picture of a confusion matrix, coloured by the share of each true label's images; with up to 20 labels the
    numbers of images stand in the cells, with more than 60 the names are left out.

    Args:
        matrix (`Sequence[Sequence[int]]` of shape `(num_labels, num_labels)`):
            Number of images, true labels in rows, predicted ones in columns.
        labels (`Sequence[str]`):
            The names of the labels.
    """
    counts, num_labels = np.asarray(matrix), len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # In inches: room for counts, for names, and at least one pixel for every cell
    size = max(
        0.55 * min(num_labels, MAX_LABELS_WITH_COUNTS),
        0.16 * min(num_labels, MAX_LABELS_WITH_NAMES),
        num_labels / DPI,
        4,
    )
    figure = Figure(figsize=(size + 2.5, size + 1.5), layout="constrained")
    axes = figure.subplots()
    # A root makes the few images off the diagonal visible
    norm = PowerNorm(0.5 if num_labels <= MAX_LABELS_WITH_NAMES else 0.25, 0, 1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the true label's images")
    if num_labels <= MAX_LABELS_WITH_NAMES:
        names = [label if len(label) <= 20 else f"{label[:19]}\N{HORIZONTAL ELLIPSIS}" for label in labels]
        fontsize = 10 if num_labels <= MAX_LABELS_WITH_COUNTS else 7
        longest = max(len(name) for name in names)
        rotation = 0 if 0.1 * longest < size / num_labels else 90
        # `parse_math=False`, because the dollar signs of a label would start a formula
        axes.set_xticks(range(num_labels), names, rotation=rotation, fontsize=fontsize, parse_math=False)
        axes.set_yticks(range(num_labels), names, fontsize=fontsize, parse_math=False)
    if num_labels <= MAX_LABELS_WITH_COUNTS:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=8)
    total = counts.sum()
    axes.set(
        xlabel="predicted", ylabel="true", title=f"{np.trace(counts) / max(total, 1):.1%} of {total:,} images right"
    )
    figure.savefig(path, dpi=DPI)
    return figure


def save_calibration(path: str | os.PathLike, bins: Sequence[dict[str, float] | None], ece: float) -> Figure:
    """
    Save a reliability diagram: how often predictions are right at each confidence, and how many have it.

    Args:
        bins (`Sequence[dict[str, float] | None]`), ece (`float`):
            The results of `calibration_bins` and `expected_calibration_error`.
    """
    width = 1 / len(bins)
    filled = [entry for entry in bins if entry is not None]
    centers = [width * (index + 0.5) for index, entry in enumerate(bins) if entry is not None]
    accuracies = np.array([entry["accuracy"] for entry in filled])
    confidences = np.array([entry["confidence"] for entry in filled])
    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.bar(centers, accuracies, width, color="#9ecae1", edgecolor="white", label="accuracy")
    top.bar(
        centers,
        np.abs(confidences - accuracies),
        width,
        bottom=np.minimum(accuracies, confidences),
        color="tab:red",
        alpha=0.35,
        edgecolor="tab:red",
        hatch="///",
        label="gap to the confidence",
    )
    top.plot([0, 1], [0, 1], "--", color="gray", label="perfect calibration")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Expected calibration error {ece:.2%}")
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    top.legend(loc="upper left")
    bottom.bar(centers, [entry["count"] for entry in filled], width, color="tab:gray", edgecolor="white")
    bottom.set(xlabel="confidence", ylabel="images")
    bottom.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.savefig(path, dpi=DPI)
    return figure
