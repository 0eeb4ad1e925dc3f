# SPDX-License-Identifier: Apache-2.0
"""The figures that sum up what a model gets right, for each kind of label."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics


@dataclass(frozen=True)
class Metric:
    """
    How to read a figure.

    Args:
        title (`str`):
            Its name in tables.
        hub_id (`str`):
            Its identifier at https://huggingface.co/metrics.
        greater_is_better (`bool`, *optional*, defaults to `True`):
            Whether a good model has a high one.
        is_share (`bool`, *optional*, defaults to `True`):
            Whether it lies in [0, 1] and can be written in percent.
        is_mean_over_images (`bool`, *optional*, defaults to `False`):
            Whether it is the share of the images that the model gets right, which has a `confidence_interval`.
    """

    title: str
    hub_id: str
    greater_is_better: bool = True
    is_share: bool = True
    is_mean_over_images: bool = False


# By the problem types of transformers. The first metric of each is the one that sums up a model best.
METRICS: dict[str, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": Metric("accuracy", "accuracy", is_mean_over_images=True),
        "top5_accuracy": Metric("top-5 accuracy", "accuracy", is_mean_over_images=True),
        "balanced_accuracy": Metric("balanced accuracy", "accuracy"),
        "f1_macro": Metric("macro F1", "f1"),
        "f1_weighted": Metric("weighted F1", "f1"),
        "precision_macro": Metric("macro precision", "precision"),
        "recall_macro": Metric("macro recall", "recall"),
        "cohen_kappa": Metric("Cohen's kappa", "cohen_kappa", is_share=False),
        "ece": Metric("expected calibration error", "ece", greater_is_better=False),
    },
    "multi_label_classification": {
        "mean_average_precision": Metric("mean average precision", "mean_average_precision"),
        "f1_micro": Metric("micro F1", "f1"),
        "f1_macro": Metric("macro F1", "f1"),
        "precision_micro": Metric("micro precision", "precision"),
        "recall_micro": Metric("micro recall", "recall"),
        "precision_macro": Metric("macro precision", "precision"),
        "recall_macro": Metric("macro recall", "recall"),
        "subset_accuracy": Metric("subset accuracy", "accuracy", is_mean_over_images=True),
    },
    "regression": {
        "r2": Metric("R\N{SUPERSCRIPT TWO}", "r_squared", is_share=False),
        "mae": Metric("mean absolute error", "mae", greater_is_better=False, is_share=False),
        "mse": Metric("mean squared error", "mse", greater_is_better=False, is_share=False),
        "rmse": Metric("root mean squared error", "rmse", greater_is_better=False, is_share=False),
    },
}


def confidence_interval(share: float, num_images: int) -> tuple[float, float]:
    """
    Return the bounds of the 95 % confidence interval of a share, which says how much a few images tell of all images of their
    kind. It is [Wilson's](https://doi.org/10.1080/01621459.1927.10502953), which stays within [0, 1] and holds for small
    numbers too.

    Args:
        share (`float`):
            A metric with `is_mean_over_images`, in [0, 1].
        num_images (`int`):
            How many images it was measured on, at least 1.
    """
    interval = binomtest(round(share * num_images), num_images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def compute_metrics(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None = None
) -> dict[str, float]:
    """
    Sum up the answers of a model in the metrics of `METRICS`, computed by scikit-learn.

    Macro averages are over the labels that occur in the data or among the predictions: a label that is predicted without
    any image counts as 0, one that does neither is left out. Balanced accuracy and mean average precision are over the
    labels that have images. What would be 0 / 0, such as the precision of a label that is never predicted, is 0.

    Args:
        problem_type (`str`):
            `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        logits (`np.ndarray` of shape `(num_images, num_labels)`):
            The outputs of the model.
        labels (`np.ndarray`):
            The truth: indices of shape `(num_images,)` for a single label, otherwise of shape `(num_images, num_labels)`,
            with 1 for every label that is present, or with the values to predict.
        thresholds (`Sequence[float]`, *optional*):
            For several labels, the probability from which each of them counts as present. Defaults to 0.5.

    Returns:
        `dict[str, float]`: the metrics by key. There is no `top5_accuracy` with fewer than six labels, and no `r2` of a
        single image.

    Raises:
        `ValueError`: the problem type is unknown, or there are no images.
    """
    if problem_type not in METRICS:
        raise ValueError(f"unknown problem type {problem_type!r}, expected one of {', '.join(METRICS)}")
    if len(labels) == 0:
        raise ValueError("there are no images to compute metrics of")
    if problem_type == "regression":
        return regression_metrics(logits, labels)
    if problem_type == "multi_label_classification":
        return multi_label_metrics(logits, labels, thresholds)
    scores = score_logits(torch.tensor(logits), torch.tensor(labels))
    return single_label_metrics({name: value.numpy() for name, value in scores.items()}, logits.shape[1])


def single_label_metrics(scores: dict[str, np.ndarray], num_labels: int) -> dict[str, float]:
    """Return the metrics of images that have one label each, from what `score_logits` says of them."""
    labels, predictions = scores["labels"], scores["predictions"]
    occurring = np.union1d(labels, predictions)
    results = {"accuracy": float(sklearn_metrics.accuracy_score(labels, predictions))}
    if num_labels > 5:
        results["top5_accuracy"] = float(np.mean(scores["ranks"] < 5))
    macro: dict[str, Any] = {"labels": occurring, "average": "macro", "zero_division": 0}
    with _many_labels_allowed():
        # `balanced_accuracy_score` is the same, and warns of predictions without images
        present = {**macro, "labels": np.unique(labels)}
        results["balanced_accuracy"] = sklearn_metrics.recall_score(labels, predictions, **present)
        results["f1_macro"] = sklearn_metrics.f1_score(labels, predictions, **macro)
        results["f1_weighted"] = sklearn_metrics.f1_score(labels, predictions, **{**macro, "average": "weighted"})
        results["precision_macro"] = sklearn_metrics.precision_score(labels, predictions, **macro)
        results["recall_macro"] = sklearn_metrics.recall_score(labels, predictions, **macro)
        # With one label in both, nothing can agree beyond chance
        is_defined = len(occurring) > 1
        results["cohen_kappa"] = sklearn_metrics.cohen_kappa_score(labels, predictions) if is_defined else 0
    bins = calibration_bins(scores["confidences"], predictions == labels)
    results["ece"] = expected_calibration_error(bins)
    return {name: float(value) for name, value in results.items()}


def multi_label_metrics(
    logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None = None
) -> dict[str, float]:
    """Return the metrics of images that have any number of labels; for the arguments see `compute_metrics`."""
    truth, predictions = labels > 0.5, predict_present(logits, thresholds)
    per_label = per_label_scores(logits, truth, thresholds)
    occurring = truth.any(axis=0) | predictions.any(axis=0)
    precisions = [entry for entry in per_label["average_precision"] if entry is not None]
    results = {
        "mean_average_precision": np.mean(precisions) if precisions else 0,
        "subset_accuracy": np.mean((truth == predictions).all(axis=1)),
    }
    # To pool the labels is to take every pair of image and label for a decision of its own
    pooled = sklearn_metrics.precision_recall_fscore_support(
        truth.ravel(), predictions.ravel(), average="binary", zero_division=0
    )
    for name, micro in zip(("precision", "recall", "f1"), pooled):
        values = per_label[name][occurring]
        results |= {f"{name}_micro": micro, f"{name}_macro": values.mean() if len(values) else 0}
    return {name: float(results[name]) for name in METRICS["multi_label_classification"]}


def regression_metrics(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the metrics of predicted `values`, each the mean over the outputs; both of shape `(num_images, num_labels)`."""
    values = np.asarray(values, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64).reshape(values.shape)
    results = {"r2": sklearn_metrics.r2_score(truth, values)} if len(values) > 1 else {}
    results["mae"] = sklearn_metrics.mean_absolute_error(truth, values)
    results["mse"] = sklearn_metrics.mean_squared_error(truth, values)
    results["rmse"] = sklearn_metrics.root_mean_squared_error(truth, values)
    return {name: float(value) for name, value in results.items()}


def predict_present(logits: np.ndarray, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """
    Return which labels count as present, a boolean array of the shape of `logits`, `(num_images, num_labels)`: those
    whose probability reaches their threshold, by default 0.5.
    """
    return expit(logits.astype(np.float64)) >= (0.5 if thresholds is None else np.asarray(thresholds))


def best_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """
    Return for every label the probability from which it has to count as present for the highest F1.

    A threshold lies halfway between two probabilities of the data. Of equally good ones it is the closest to 0.5, which
    also is that of labels without images.

    Args:
        logits (`np.ndarray` of shape `(num_images, num_labels)`), labels (`np.ndarray` of the same shape):
            The outputs of the model, and 1 for every label that is present.
    """
    probabilities = expit(logits.astype(np.float64))
    thresholds = []
    for column, truth in zip(probabilities.T, labels.T > 0.5):
        if not truth.any():
            thresholds.append(0.5)
            continue
        # The last point of the curve belongs to no score: nothing is present
        precision, recall, scores = sklearn_metrics.precision_recall_curve(truth, column)
        f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
        best = ((scores + np.concatenate([[0], scores[:-1]])) / 2)[np.isclose(f1, f1.max(), rtol=1e-9)]
        thresholds.append(float(best[np.abs(best - 0.5).argmin()]))
    return thresholds


def per_label_scores(
    logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """
    Judge every label on its own; for the arguments see `compute_metrics`.

    Returns:
        `dict`: arrays `precision`, `recall` and `f1` of shape `(num_labels,)`, and the list `average_precision`, with
        `None` for labels without images.
    """
    truth, predictions = labels > 0.5, predict_present(logits, thresholds)
    # scikit-learn takes a single column for a choice of two
    only = [1] if truth.shape[1] == 1 else None
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        truth, predictions, labels=only, average=None, zero_division=0
    )
    average_precision = [
        float(sklearn_metrics.average_precision_score(column, scores)) if column.any() else None
        for column, scores in zip(truth.T, logits.T)
    ]
    return {"precision": precision, "recall": recall, "f1": f1, "average_precision": average_precision}


@contextmanager
def _many_labels_allowed() -> Iterator[None]:
    """Keep scikit-learn from warning that few images of many labels might be meant as numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        yield


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


def per_class_scores(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """
    Return for the labels called `names` their `label`, `num_images`, `accuracy` (the share of these images that are
    classified right), `precision`, `recall` (the same as the accuracy) and `f1`. What would be 0 / 0 is `None`.
    """
    with _many_labels_allowed():
        *columns, counts = sklearn_metrics.precision_recall_fscore_support(
            labels, predictions, labels=np.arange(len(names)), average=None, zero_division=np.nan
        )
    columns = [[None if np.isnan(value) else float(value) for value in column] for column in columns]
    return [
        {
            "label": name,
            "num_images": int(count),
            "accuracy": recall,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
        for name, count, precision, recall, f1 in zip(names, counts, *columns)
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
    result: list[dict[str, float] | None] = [None] * num_bins
    for index in np.unique(bins):
        inside = bins == index
        confidence, accuracy = float(confidences[inside].mean()), float(correct[inside].mean())
        result[index] = {"confidence": confidence, "accuracy": accuracy, "count": int(inside.sum())}
    return result


def expected_calibration_error(bins: list[dict[str, float] | None]) -> float:
    """
    Return the mean distance between confidence and accuracy over the bins of `calibration_bins`, weighted by their
    number of images: equation 3 of [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599).
    """
    filled = [entry for entry in bins if entry is not None]
    total = sum(entry["count"] for entry in filled)
    return sum(entry["count"] / total * abs(entry["accuracy"] - entry["confidence"]) for entry in filled)
