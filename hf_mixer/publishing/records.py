# SPDX-License-Identifier: Apache-2.0
"""What training and evaluation noted of a model, read from a folder that may be somebody else's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..evaluation.metrics import METRICS
from ..local_paths import without_paths
from ..utils import read_json
from .wording import is_number


def is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_count, value.values()))


def are_labels(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and "label" in entry and is_count(entry.get("num_images", 0)) for entry in value
    )


def is_share(value: Any) -> bool:
    # What is no number is not shown, and a mean of ones may lie above one by a rounding
    return not is_number(value) or 0 <= value <= 1 + 1e-6


SHARES = [key for metrics in METRICS.values() for key, metric in metrics.items() if metric.is_share]
# What values have to be that the card and the demo read, and their keys
FORMS: tuple[tuple[str, Callable[[Any], bool], list[str]], ...] = (
    (
        "a text",
        lambda value: isinstance(value, str),
        [
            *("command", "base_model", "teacher_model", "hardware"),
            *(f"dataset.{key}" for key in ("name", "config", "split", "train_split", "eval_split")),
        ],
    ),
    (
        "an object",
        lambda value: isinstance(value, dict),
        ["dataset", "dataset.image_conversion", "hyperparameters", "versions", "example"],
    ),
    (
        "a whole number",
        is_count,
        ["num_processes", *(f"dataset.num_{which}images" for which in ("", "train_", "eval_", "skipped_"))],
    ),
    ("a number from 0 on", lambda value: is_number(value) and value >= 0, ["duration_seconds"]),
    ("an object of whole numbers", are_counts, ["dataset.class_counts"]),
    ("a list of objects with a label", are_labels, ["per_class"]),
    ("a number from 0 to 1", is_share, [f"{prefix}{key}" for key in SHARES for prefix in ("", "eval_")]),
)


def read_results(path: Path) -> dict[str, Any]:
    """
    Return what a file says about a run, with the last parts of the paths in it; nothing where there is no such file.

    Raises:
        `ValueError`: it says something in another form than training and evaluation write it.
    """
    record = read_json(path) if path.is_file() else {}
    values, dataset = dict(record), record.get("dataset")
    if isinstance(dataset, dict):
        values |= {f"dataset.{key}": value for key, value in dataset.items()}
    for expected, is_right, keys in FORMS:
        for key in keys:
            if values.get(key) is not None and not is_right(values[key]):
                raise ValueError(
                    f"{path} has {key}={str(values[key])[:50]}, expected {expected}: write it again with hf-mixer, or "
                    "remove it"
                )
    return without_paths(record)
