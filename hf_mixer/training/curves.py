# SPDX-License-Identifier: Apache-2.0
"""The curves of a training run: losses, the metric that sums up the model best, and learning rate."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transformers import TrainerCallback

from ..evaluation.metrics import METRICS


logger = logging.getLogger(__name__)

CURVES_NAME = "training_curves.png"
DPI = 100


class TrainingCurvesCallback(TrainerCallback):
    """Draw the curves of a run into `training_curves.png` in its output folder, whenever it is saved and at the end."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir) / CURVES_NAME
            try:
                save_training_curves(path, state.log_history)
            except OSError as error:
                logger.warning("The run goes on without %s, which cannot be written: %s", path, error)

    def on_train_end(self, args, state, control, **kwargs):
        self.on_save(args, state, control)


def save_training_curves(path: str | os.PathLike, log_history: Sequence[dict]) -> Figure:
    """
    Save the course of a training: losses, the first metric of the kind of labels (accuracy, mean average precision or
    R2) and learning rate over the epochs, as far as `log_history` (that of `trainer.state` or of
    `trainer_state.json`) holds them.
    """
    panels = {"loss": {"training": "loss", "validation": "eval_loss"}}
    metrics = {}
    for of_type in METRICS.values():
        key, metric = next(iter(of_type.items()))
        metrics[metric.title] = metric
        panels[metric.title] = {"validation": f"eval_{key}"}
    panels["learning rate"] = {"learning rate": "learning_rate"}

    entries = [entry for entry in log_history if "epoch" in entry]
    curves: dict[str, dict] = {}
    for panel, keys in panels.items():
        for name, key in keys.items():
            points = [(entry["epoch"], entry[key]) for entry in entries if key in entry]
            if points:
                curves.setdefault(panel, {})[name] = points

    figure = Figure(figsize=(4.5 * max(len(curves), 1), 3.5), layout="constrained")
    if not curves:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center")
        figure.savefig(path, dpi=DPI)
        return figure
    last_epoch = max(entry["epoch"] for entry in entries)
    for axes, (panel, lines) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items()):
        draw_panel(axes, panel, lines, last_epoch)
        if panel in metrics:
            is_share, (_, last) = metrics[panel].is_share, lines["validation"][-1]
            axes.set_title(f"{panel} (last: {last:{'.1%' if is_share else '.4g'}})")
            if is_share:
                axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.savefig(path, dpi=DPI)
    return figure


def draw_panel(axes: Axes, title: str, lines: dict[str, list[tuple[float, float]]], last_epoch: float) -> None:
    """Draw the points (epoch, value) of every named line."""
    for name, points in lines.items():
        color = "tab:orange" if name == "validation" else "tab:blue"
        # A single point makes no line
        axes.plot(*zip(*points), color=color, label=name, marker="o" if len(points) < 30 else None, markersize=3)
    axes.set(xlabel="epoch", title=title, xlim=(0, 1.02 * last_epoch or 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
