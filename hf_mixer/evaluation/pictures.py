# SPDX-License-Identifier: Apache-2.0
"""Which pictures show the results of an evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import evenly_spaced
from ..data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .evaluate import describe_class, describe_output, relative_errors
from .examples import name_truth, rank_images
from .metrics import predict_present
from .plots import (
    MAX_LABELS_WITH_NAMES,
    save_calibration,
    save_confused_pairs,
    save_confusion_matrix,
    save_contact_sheet,
    save_per_class,
    save_regression,
)


# Images of each kind among the predictions, which fill a row
NUM_PREDICTIONS = 8
TITLES = {
    "right": "Right: {count:,} of {total:,} images, from the most to the least confident",
    "wrong": "Wrong: {count:,} of {total:,} images, from the most to the least confident",
    "estimates": "Estimates, from the smallest to the largest error",
}


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
    # Nobody chose these images: they are at equal distances among all of their kind
    predictions = {
        TITLES[kind].format(count=len(images), total=len(scores["labels"])): [
            (read_image(image), describe_prediction(results, scores, image))
            for image in images[evenly_spaced(len(images), NUM_PREDICTIONS)].tolist()
        ]
        for kind, images in rank_images(results, scores).items()
        if len(images)
    }
    save_contact_sheet(place("predictions.png"), predictions, NUM_PREDICTIONS)
    if mistakes:
        title = "Largest errors" if problem_type == REGRESSION else "Most confident mistakes"
        shown = [(read_image(mistake["image"]), describe_answer(mistake)) for mistake in mistakes]
        save_contact_sheet(place("mistakes.png"), {title: shown})
    return drawn


def describe_prediction(results: dict[str, Any], scores: dict[str, np.ndarray], image: int) -> tuple[str, str]:
    """Return what is true of an image, and what the model says."""
    names = [entry["label"] for entry in results["per_class"]]
    if results["problem_type"] == SINGLE_LABEL:
        return describe_answer(describe_class(scores, names, image))
    if results["problem_type"] == REGRESSION:
        return describe_answer(describe_output(scores, names, image, int(relative_errors(scores)[image].argmax())))
    thresholds = [entry["threshold"] for entry in results["per_class"]]
    present = predict_present(scores["logits"][image], thresholds)
    true, seen = name_truth(results, scores, image), [name for name, is_seen in zip(names, present) if is_seen]
    return f"true: {', '.join(true) or 'none'}", f"seen: {', '.join(seen) or 'none'}"


def describe_answer(answer: dict[str, Any]) -> tuple[str, str]:
    """Return the two lines that stand below an image: what is true of it, and what the model says."""
    true, predicted = answer["true"], answer["predicted"]
    if "confidence" in answer:
        return f"true: {true}", f"{answer['confidence']:.0%} {predicted}"
    return f"{answer['output']}: {true:.4g}", f"predicted: {predicted:.4g}"
