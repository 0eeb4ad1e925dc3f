# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .fonts import drawable, fit_text, text_width


DPI = 100
# With more labels, the numbers of images and then the names would overlap
MAX_LABELS_WITH_COUNTS = 20
MAX_LABELS_WITH_NAMES = 60
# With more labels than have names, these of them are shown
NUM_LOWEST, NUM_HIGHEST = 30, 10
# Points of a scatter plot that can still be told apart
MAX_POINTS = 2000
# Outputs of a regression that are drawn
MAX_PANELS = 6
# Characters of a name at the edge of a matrix
MAX_NAME_LENGTH = 60
TITLE_FONT_SIZE, TABLE_FONT_SIZE = 11, 9
# In inches
LINE_HEIGHT = 0.2
# Images of so many pixels a side are enlarged to squares of one color
SMALL_IMAGE = 32
# In inches too: a sheet of images, the space around each of them, the widest column, and the longest side of an image
SHEET_WIDTH = 8.1
SHEET_PADDING = 0.02
MAX_COLUMN_WIDTH = 2.4
MAX_EDGE = 1.35


def save_confusion_matrix(path: str | os.PathLike, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """
    Save a picture of a confusion matrix, coloured by the share of each true label's images; with up to 20 labels the
    numbers of images stand in the cells. With more than 60 labels, `save_confused_pairs` says more.

    Args:
        matrix (`Sequence[Sequence[int]]` of shape `(num_labels, num_labels)`):
            Number of images, true labels in rows, predicted ones in columns.
        labels (`Sequence[str]`):
            The names of the labels.
    """
    counts, num_labels = np.asarray(matrix), len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    has_counts = num_labels <= MAX_LABELS_WITH_COUNTS
    font_size = 10 if has_counts else 8
    with drawable(labels, MAX_NAME_LENGTH) as names:
        longest = max(text_width(name, font_size) for name in names)
        cell = max(0.5, text_width(str(counts.max()), 8) + 0.1) if has_counts else LINE_HEIGHT
        size = max(cell * num_labels, 3)
        is_upright = longest > size / num_labels - 0.1
        height = size + 1 + (longest if is_upright else 0.2)
        figure = Figure(figsize=(size + longest + 1.7, height), layout="compressed")
        axes = figure.subplots()
        # A root makes the few images off the diagonal visible
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0))
        bar.set_label("share of the true label's images")
        # `parse_math=False`, because the dollar signs of a label would start a formula
        rotation = 90 if is_upright else 0
        axes.set_xticks(range(num_labels), names, rotation=rotation, fontsize=font_size, parse_math=False)
        axes.set_yticks(range(num_labels), names, fontsize=font_size, parse_math=False)
        if has_counts:
            for row, column in np.argwhere(counts):
                color = "white" if shares[row, column] > 0.4 else "black"
                axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=8)
        total = counts.sum()
        axes.set(xlabel="predicted", ylabel="true")
        # Over the whole picture: a matrix of few labels is narrower than its title
        figure.suptitle(f"{np.trace(counts) / max(total, 1):.1%} of {total:,} images right")
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
    return figure


def save_confused_pairs(path: str | os.PathLike, pairs: Sequence[Mapping[str, Any]], num_labels: int) -> Figure:
    """
    Save a picture of the most frequent mistakes: which label is taken for which other one, and how often.

    Args:
        pairs (`Sequence[Mapping]`):
            What `find_confused_pairs` returns.
        num_labels (`int`):
            How many labels there are to choose from.
    """
    labels = [pair[side] for pair in pairs for side in ("true", "predicted")]
    with drawable(labels, longest=45) as shown:
        names = [f"{true} \N{RIGHTWARDS ARROW} {predicted}" for true, predicted in zip(shown[::2], shown[1::2])]
        figure, axes = _lay_out_bars(names, "images", f"Most confused pairs of {num_labels:,} labels")
        counts = [pair["count"] for pair in pairs]
        if not pairs:
            axes.text(0.5, 0.5, "No image is classified wrong", ha="center", transform=axes.transAxes)
            axes.set_axis_off()
        axes.barh(range(len(pairs)), counts, color="tab:red", alpha=0.7)
        for row, pair in enumerate(pairs):
            axes.text(pair["count"], row, f" {pair['count']:,} ({pair['share']:.0%})", va="center", fontsize=8)
        axes.set_xlim(0, 1.25 * max(counts, default=1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel(
            "images of the first label taken for the second (share of the first label's images)", fontsize=8
        )
        figure.savefig(path, dpi=DPI)
    return figure


def save_per_class(
    path: str | os.PathLike, labels: Sequence[str], counts: Sequence[int], shares: Mapping[str, Sequence[float | None]]
) -> Figure:
    """
    Save a picture of how well each label is recognized, the worst one first. With more than 60 labels it shows the 30
    lowest and the 10 highest, and how all are distributed.

    Args:
        labels (`Sequence[str]`), counts (`Sequence[int]`):
            The names of the labels, and the number of images that have them; those without images are left out.
        shares (`Mapping[str, Sequence[float | None]]`):
            By its name, a figure from 0 to 1 for each label, such as its accuracy. The first one decides the order.
    """
    measure, values = next(iter(shares.items()))
    # Of equal ones first those with the most images
    order = sorted(
        (index for index, count in enumerate(counts) if count), key=lambda index: (values[index] or 0, -counts[index])
    )
    low, high = order, order[:0]
    if len(order) > MAX_LABELS_WITH_NAMES:
        low, high = order[:NUM_LOWEST], order[-NUM_HIGHEST:]
    shown = [*low, *high]
    # One row is left free between the lowest and the highest
    rows = np.array([*range(len(low)), *range(len(low) + 1, len(low) + 1 + len(high))])
    with drawable([labels[index] for index in shown]) as names:
        names = [f"{name}  ({counts[index]:,})" for name, index in zip(names, shown)]
        if high:
            names.insert(len(low), f"{len(order) - len(shown):,} more labels")
        title = f"{measure[0].upper()}{measure[1:]} of {len(order):,} labels (number of images)"
        figure, axes = _lay_out_bars(names, measure, title, with_distribution=bool(high))
        thickness = 0.8 / len(shares)
        for place, (name, entries) in enumerate(shares.items()):
            lengths = [entries[index] or 0 for index in shown]
            offsets = (place - (len(shares) - 1) / 2) * thickness
            axes.barh(rows + offsets, lengths, thickness, color=f"C{place}", alpha=0.8, label=name)
        for row, index in zip(rows, shown):
            axes.text(1.01, row, f"{values[index] or 0:.1%}", va="center", fontsize=8)
        if high:
            figure.axes[1].hist([values[index] or 0 for index in order], bins=20, range=(0, 1), color="C0")
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if len(shares) > 1:
            figure.legend(loc="outside lower center", ncols=len(shares))
        figure.savefig(path, dpi=DPI)
    return figure


def _lay_out_bars(
    names: Sequence[str], measure: str, title: str, with_distribution: bool = False
) -> tuple[Figure, Axes]:
    """
    Return a figure with room for one bar per name, the first one on top, and its axes; with the distribution of `measure` it
    has a second row of axes.
    """
    longest = max((text_width(name, TABLE_FONT_SIZE) for name in names), default=0)
    height = max(LINE_HEIGHT * len(names), 1)
    panels = [height, 1.6] if with_distribution else [height]
    figure = Figure(figsize=(longest + 5, sum(panels) + 1.2), layout="constrained")
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=panels)[:, 0]
    # Over the whole picture, because the axes begin right of the names
    figure.suptitle(title, fontsize=TITLE_FONT_SIZE)
    rows[0].set_yticks(range(len(names)), names, fontsize=TABLE_FONT_SIZE, parse_math=False)
    rows[0].set_ylim(len(names) - 0.4, -0.6)
    if with_distribution:
        rows[1].set(xlim=(0, 1.12), xlabel=measure, ylabel="labels", xticks=np.linspace(0, 1, 6))
        rows[1].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure, rows[0]


def save_contact_sheet(
    path: str | os.PathLike,
    groups: Mapping[str, Sequence[tuple[np.ndarray, tuple[str, str]]]],
    columns: int = 6,
) -> Figure:
    """
    Save groups of images, each below its title, and two lines below each image.

    Args:
        groups (`Mapping`):
            By their titles, the images and lines. An image is an array of shape `(height, width, num_channels)` with
            pixels from 0 to 255, of one channel or three. No group is empty.
        columns (`int`, *optional*, defaults to 6):
            Images in a row. Where their lines are too long for that, it is 4.
    """
    font_size = 7
    with drawable([line for group in groups.values() for _, lines in group for line in lines]) as lines:
        longest = max(text_width(line, font_size) for line in lines)
        width = max(longest + 0.1, SHEET_WIDTH / columns)
        if width * columns > 4 / 3 * SHEET_WIDTH:
            columns, width = 4, min(width, MAX_COLUMN_WIDTH)
        edge = min(width - 2 * SHEET_PADDING, MAX_EDGE)
        columns = min(columns, max(map(len, groups.values())))
        heights = [0.35 + (edge + 0.36) * -(-len(group) // columns) for group in groups.values()]
        longest_title = max(text_width(title, TITLE_FONT_SIZE) for title in groups)
        layout = ConstrainedLayoutEngine(w_pad=SHEET_PADDING, h_pad=SHEET_PADDING, wspace=0, hspace=0)
        figure = Figure(figsize=(max(width * columns, longest_title + 0.2), sum(heights)), layout=layout)
        parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        captions = iter([fit_text(line, font_size, width - 0.05) for line in lines])
        for part, (title, group) in zip(parts, groups.items()):
            part.suptitle(title, fontsize=TITLE_FONT_SIZE)
            grid = part.subplots(-(-len(group) // columns), columns, squeeze=False).ravel()
            for axes in grid:
                axes.set_axis_off()
                axes.set_anchor("N")  # the lines below need what room is left
            for axes, (image, _) in zip(grid, group):
                # Small images keep their pixels, large ones are reduced smoothly
                interpolation = "nearest" if max(image.shape[:2]) <= SMALL_IMAGE else "auto"
                axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation=interpolation)
                caption = f"{next(captions)}\n{next(captions)}"
                axes.set_title(caption, y=0, pad=-3, verticalalignment="top", fontsize=font_size, parse_math=False)
        figure.savefig(path, dpi=DPI)
    return figure


def save_regression(
    path: str | os.PathLike, values: np.ndarray, truth: np.ndarray, names: Sequence[str], r2: Sequence[float | None]
) -> Figure:
    """
    Save predicted values over true ones, a panel for each of the first six outputs.

    Args:
        values (`np.ndarray` of shape `(num_images, num_labels)`), truth (`np.ndarray` of the same shape):
            What the model predicts, and what is right.
        names (`Sequence[str]`), r2 (`Sequence[float | None]`):
            The name of each output and its coefficient of determination.
    """
    num_panels = min(len(names), MAX_PANELS)
    columns = min(num_panels, 3)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    with drawable(names[:num_panels], longest=30) as lines:
        for index, (axes, name) in enumerate(zip(panels, lines)):
            true, predicted = truth[:, index], values[:, index]
            if len(true) > MAX_POINTS:
                axes.hexbin(true, predicted, gridsize=40, bins="log", mincnt=1, cmap="viridis")
            else:
                axes.plot(true, predicted, "o", color="tab:blue", markersize=4, alpha=0.5, markeredgewidth=0)
            both = np.concatenate([true, predicted])
            margin = 0.05 * np.ptp(both) or 1
            limits = (both.min() - margin, both.max() + margin)
            axes.plot(limits, limits, linestyle="--", color="gray")
            axes.set(xlim=limits, ylim=limits)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            score = "" if r2[index] is None else f": R\N{SUPERSCRIPT TWO} = {r2[index]:.3f}"
            axes.set_title(f"{name}{score}", fontsize=10, parse_math=False)
            axes.set(xlabel="true", ylabel="predicted")
        for axes in panels[num_panels:]:
            axes.set_axis_off()
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
