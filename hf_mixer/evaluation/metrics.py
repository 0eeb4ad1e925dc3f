# SPDX-License-Identifier: Apache-2.0
"""The figures that sum up what a classifier gets right."""

from collections.abc import Sequence

import numpy as np
import torch


def score_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Judge the predictions for one batch: `logits` of shape `(batch_size, num_labels)`, where `labels` of shape
    `(batch_size,)` are the indices of the right ones.

    Returns:
        `dict[str, torch.Tensor]` of tensors of shape `(batch_size,)`: `labels`; `predictions`, the most likely label;
        `confidences`, its probability; `ranks`, how many labels come before the right one, of equal ones those with a
        smaller index (0 means right); `losses`, the cross-entropy in nats; `finite`, whether all logits are numbers.
    """
    logits = logits.float()
    column = labels[:, None]
    right = logits.gather(1, column)
    earlier = torch.arange(logits.shape[1], device=logits.device) < column
    predictions = logits.argmax(dim=1)
    log_probabilities = logits.log_softmax(dim=1)
    return {
        "labels": labels,
        "predictions": predictions,
        "confidences": log_probabilities.gather(1, predictions[:, None])[:, 0].exp(),
        "ranks": ((logits > right) | ((logits == right) & earlier)).sum(dim=1),
        "losses": -log_probabilities.gather(1, column)[:, 0],
        "finite": logits.isfinite().all(dim=1),
    }


def per_class_accuracy(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[dict]:
    """
    Return for the labels called `names` their `label`, `num_images`, and `accuracy`, the share of these images that are
    classified right (`None` without images).
    """
    counts = np.bincount(labels, minlength=len(names))
    hits = np.bincount(labels[predictions == labels], minlength=len(names))
    return [
        {"label": name, "num_images": int(count), "accuracy": float(hit / count) if count else None}
        for name, hit, count in zip(names, hits, counts)
    ]


def calibration_bins(
    confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15
) -> list[dict[str, float] | None]:
    """
    Sort predictions into bins of equal width by their confidence.

    Args:
        confidences (`np.ndarray` of shape `(num_images,)`):
            Probability of the predicted label, in [0, 1].
        correct (`np.ndarray` of shape `(num_images,)`):
            Whether the prediction is right.
        num_bins (`int`, *optional*, defaults to 15):
            Number of bins. The first holds confidences in [0, 1 / num_bins], the next ones those in
            (1 / num_bins, 2 / num_bins] and so on.

    Returns:
        `list[dict[str, float] | None]`: for every bin the mean `confidence`, the `accuracy` and the `count`, or `None`
        where it is empty.
    """
    confidences = np.asarray(confidences, dtype=np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.digitize(confidences, edges[1:-1], right=True)
    result: list[dict[str, float] | None] = []
    for index in range(num_bins):
        inside = bins == index
        if inside.any():
            confidence, accuracy = float(confidences[inside].mean()), float(correct[inside].mean())
            result.append({"confidence": confidence, "accuracy": accuracy, "count": int(inside.sum())})
        else:
            result.append(None)
    return result


def expected_calibration_error(bins: list[dict[str, float] | None]) -> float:
    """
    Return the mean distance between confidence and accuracy over the bins of `calibration_bins`, weighted by their
    number of images: equation 3 of [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599).
    """
    filled = [entry for entry in bins if entry is not None]
    total = sum(entry["count"] for entry in filled)
    return sum(entry["count"] / total * abs(entry["accuracy"] - entry["confidence"]) for entry in filled)
