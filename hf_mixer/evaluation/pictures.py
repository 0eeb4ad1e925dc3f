# SPDX-License-Identifier: Apache-2.0
"""Which pictures show the results of an evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .plots import (
    MAX_LABELS_WITH_NAMES,
    save_calibration,
    save_confused_pairs,
    save_confusion_matrix,
    save_mistakes,
    save_per_class,
    save_regression,
)


def save_pictures(
    folder: Path,
    results: dict[str, Any],
    scores: dict[str, np.ndarray],
    read_image: Callable[[int], np.ndarray],
) -> list[str]:
    """
    Draw the pictures that fit the results of `evaluate_model`.

    Args:
        folder (`Path`):
            Where to write them.
        results (`dict`), scores (`dict`):
            What `evaluate_model` returns.
        read_image (`Callable`):
            Returns the image of a number in the data, of shape `(height, width, num_channels)` and from 0 to 255.

    Returns:
        `list[str]`: the names of the files.
    """
    problem_type, per_class, mistakes = results["problem_type"], results["per_class"], results["mistakes"]
    names = [entry["label"] for entry in per_class]
    drawn = []

    def place(name: str) -> Path:
        drawn.append(name)
        return folder / name

    if problem_type == SINGLE_LABEL:
        if len(names) <= MAX_LABELS_WITH_NAMES:
            save_confusion_matrix(place("confusion_matrix.png"), results["confusion_matrix"], names)
        else:
            save_confused_pairs(place("confused_pairs.png"), results["confused_pairs"], len(names))
        save_calibration(place("calibration.png"), results["calibration"], results["ece"])
    if problem_type == REGRESSION:
        r2 = [entry["r2"] for entry in per_class]
        save_regression(place("regression.png"), scores["logits"], scores["labels"], names, r2)
    else:
        measures = {"accuracy": "accuracy"}
        if problem_type == MULTI_LABEL:
            measures = {"average precision": "average_precision", "F1": "f1"}
        shares = {title: [entry[key] for entry in per_class] for title, key in measures.items()}
        save_per_class(place("per_class.png"), names, [entry["num_images"] for entry in per_class], shares)
    if mistakes:
        title = "Largest errors" if problem_type == REGRESSION else "Most confident mistakes"
        images = [read_image(mistake["image"]) for mistake in mistakes]
        save_mistakes(place("mistakes.png"), images, [describe_mistake(mistake) for mistake in mistakes], title)
    return drawn


def describe_mistake(mistake: dict[str, Any]) -> tuple[str, str]:
    """Return what is true of an image, and what the model says."""
    true, predicted = mistake["true"], mistake["predicted"]
    if "confidence" in mistake:
        return f"true: {true}", f"{mistake['confidence']:.0%} {predicted}"
    return f"{mistake['output']}: {true:.4g}", f"predicted: {predicted:.4g}"
