# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark."""

import itertools
import operator
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch


def save_speed_bars(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """
    Save a picture of a benchmark: one bar per row, as long as its share of the device's limit, grouped by case.

    Args:
        path (`str` or `os.PathLike`):
            The file to write; its suffix chooses the format.
        rows (`Sequence[dict]`):
            Rows of `hf_mixer.benchmarking.measure`.
    """
    cases = [
        (case, list(bars))
        for case, bars in itertools.groupby(rows, operator.itemgetter("variant", "mode", "dtype", "batch_size"))
    ]
    implementations = dict.fromkeys(row["implementation"] for row in rows)
    colors = {name: f"C{index}" for index, name in enumerate(implementations)}
    figure = Figure(figsize=(9, 1 + 0.3 * (len(rows) + 2 * len(cases))), layout="constrained")
    axes = figure.subplots()
    ticks, labels = [], []
    position = 0.0
    for case, bars in cases:
        axes.text(0, position, "{} {}, {}, batch {}".format(*case), fontweight="bold", va="center", fontsize=9)
        for row in bars:
            position += 1
            length, speed = 100 * row["limit"], f" {row['images_per_second']:,.0f} images/s"
            axes.barh(position, length, color=colors[row["implementation"]])
            axes.text(length, position, speed, va="center", fontsize=8)
            ticks.append(position)
            labels.append(row["execution"])
        position += 1.5
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(position - 0.5, -1)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("% of the device's limit")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=100)
