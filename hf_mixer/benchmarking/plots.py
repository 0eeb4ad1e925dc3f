# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


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
