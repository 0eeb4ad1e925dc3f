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
    per_class = results["per_class"]
    names = [entry["label"] for entry in per_class]
    problem_type = results["problem_type"]
    drawn = []
    if problem_type == SINGLE_LABEL:
        if len(names) <= MAX_LABELS_WITH_NAMES:
            drawn.append("confusion_matrix.png")
            save_confusion_matrix(folder / drawn[-1], results["confusion_matrix"], names)
        else:
            drawn.append("confused_pairs.png")
            save_confused_pairs(folder / drawn[-1], results["confused_pairs"], len(names))
        drawn.append("calibration.png")
        save_calibration(folder / drawn[-1], results["calibration"], results["ece"])
    if problem_type == REGRESSION:
        drawn.append("regression.png")
        r2 = [entry["r2"] for entry in per_class]
        save_regression(folder / drawn[-1], scores["logits"], scores["labels"], names, r2)
    else:
        drawn.append("per_class.png")
        measures = {"accuracy": "accuracy"}
        if problem_type == MULTI_LABEL:
            measures = {"average_precision": "average precision", "f1": "F1"}
        shares = {title: [entry[key] for entry in per_class] for key, title in measures.items()}
        save_per_class(folder / drawn[-1], names, [entry["num_images"] for entry in per_class], shares)
    if results["mistakes"]:
        drawn.append("mistakes.png")
        title = "Largest errors" if problem_type == REGRESSION else "Most confident mistakes"
        images = [read_image(mistake["image"]) for mistake in results["mistakes"]]
        captions = [describe_mistake(mistake) for mistake in results["mistakes"]]
        save_mistakes(folder / drawn[-1], images, captions, title)
    return drawn


def describe_mistake(mistake: dict[str, Any]) -> tuple[str, str]:
    """Return what is true of an image, and what the model says."""
    true, predicted = mistake["true"], mistake["predicted"]
    if "confidence" in mistake:
        return f"true: {true}", f"{mistake['confidence']:.0%} {predicted}"
    return f"{mistake['output']}: {true:.4g}", f"predicted: {predicted:.4g}"
