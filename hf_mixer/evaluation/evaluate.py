# SPDX-License-Identifier: Apache-2.0
"""Running a model over a data set."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from scipy.special import expit
from sklearn import metrics as sklearn_metrics
from torch.utils.data import DataLoader

from ..data.images import collate_images
from ..data.labels import MULTI_LABEL, SINGLE_LABEL, problem_type_of
from ..data.loaders import NamedRows
from ..progress import progress_bar
from .metrics import (
    calibration_bins,
    multi_label_metrics,
    per_class_scores,
    per_label_scores,
    predict_present,
    regression_metrics,
    score_logits,
    single_label_metrics,
)


# With more labels the matrix would fill gigabytes
MAX_MATRIX_LABELS = 5000
NUM_CONFUSED_PAIRS = 30
NUM_MISTAKES = 24


@torch.inference_mode()
def predict_dataset(
    model, dataset: Dataset, accelerator: Accelerator, batch_size: int = 64, num_workers: int = 0
) -> dict[str, np.ndarray]:
    """
    Run a model over a data set, shared out among the processes of `accelerator`.

    Args:
        model ([`MixerForImageClassification`] or [`~deployment.runtime.ExportedMixerForImageClassification`]):
            The model. One in PyTorch is moved to the device of the accelerator.
        dataset (`Dataset`):
            Images and labels under an [`ImageTransform`].
        batch_size (`int`, *optional*, defaults to 64):
            Images per forward pass and process.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode images, for each process that runs the model.

    Returns:
        `dict[str, np.ndarray]`: what `score_batch` says of every image, in the order of the data set and each image
        once, on every process.

    Raises:
        `ValueError`: the data set is empty, an image cannot be read, or the output for an image is not finite; the
        message names the image.
    """
    if len(dataset) == 0:
        raise ValueError("the data set holds no images")
    loader = DataLoader(
        NamedRows(dataset),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_images,
        pin_memory=accelerator.device.type == "cuda",
    )
    loader = accelerator.prepare_data_loader(loader)
    model = model.eval()
    if getattr(model, "hf_quantizer", None) is None:  # a quantized model stays where it was loaded
        model = model.to(accelerator.device)
    problem_type = problem_type_of(model.config)
    parts, done = [], 0
    with progress_bar(total=len(dataset), desc="Evaluating", unit=" images") as progress:
        for batch in loader:
            # Those of an exported model are on the CPU
            logits = model(batch["pixel_values"]).logits.to(batch["labels"].device)
            scores = score_batch(problem_type, logits, batch["labels"])
            # Accelerate fills the last round of batches with images from the start; this drops them again
            scores = {name: value.cpu().numpy() for name, value in accelerator.gather_for_metrics(scores).items()}
            if not scores["finite"].all():
                raise ValueError(
                    f"the output of the model for image {done + int(scores['finite'].argmin())} of the data is not "
                    f"finite, computed in {str(model.dtype).removeprefix('torch.')}: try dtype float32, or check the "
                    "weights and that image"
                )
            parts.append(scores)
            done += len(scores["labels"])
            progress.update(len(scores["labels"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_batch(problem_type: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Judge one batch of `logits` of shape `(batch_size, num_labels)`.

    Returns:
        `dict[str, torch.Tensor]`: for a single label see `score_logits`. Otherwise `labels` and `logits` of shape
        `(batch_size, num_labels)`, and `finite` of shape `(batch_size,)`.
    """
    if problem_type == SINGLE_LABEL:
        return score_logits(logits, labels)
    logits = logits.float()
    return {
        "labels": labels.float().reshape(logits.shape),
        "logits": logits,
        "finite": logits.isfinite().all(dim=1),
    }


def evaluate_model(
    model,
    dataset: Dataset,
    accelerator: Accelerator,
    batch_size: int = 64,
    num_workers: int = 0,
    reference=None,
    thresholds: Sequence[float] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    Measure a model on a data set; for the other arguments and errors see `predict_dataset`.

    Args:
        reference ([`MixerForImageClassification`], *optional*):
            A model to compare with, such as the one that `model` was quantized from.
        thresholds (`Sequence[float]`, *optional*):
            For several labels per image, the probability from which each of them counts as present. Defaults to 0.5.

    Returns:
        `tuple`: the results, ready for JSON, and what `predict_dataset` returns. The results of every model:

        - `problem_type`, the metrics that `METRICS` lists for it, and `loss`: the mean cross-entropy, in nats and with
          several labels per image over these as well, or the mean squared error;
        - `per_class`: one entry for every label or output, see `per_class_scores`, `judge_labels` and `judge_outputs`;
        - `mistakes`: the most confident ones, or the largest errors, at most 24, each with the place of its `image` in
          `dataset`;
        - `images_per_second`: reading and decoding included.

        For a single label per image also:

        - `confused_pairs`: how many images of one label are taken for another, the most frequent first, at most 30;
        - `confusion_matrix`: number of images, true labels in rows, predicted ones in columns (`None` with more than
          5,000 labels);
        - `calibration`, `ece_bins`: see `calibration_bins`, and their number;
        - `agreement`: share of images for which `reference`, if there is one, has the same most likely label.
    """
    start = time.perf_counter()
    scores = predict_dataset(model, dataset, accelerator, batch_size, num_workers)
    duration = time.perf_counter() - start

    problem_type = problem_type_of(model.config)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if problem_type == SINGLE_LABEL:
        judged = judge_classes(scores, names)
    elif problem_type == MULTI_LABEL:
        judged = judge_labels(scores, names, thresholds)
    else:
        judged = judge_outputs(scores, names)
    results = {
        "problem_type": problem_type,
        **judged,
        "images_per_second": len(scores["labels"]) / duration,
    }
    if reference is not None and "predictions" in scores:
        others = predict_dataset(reference, dataset, accelerator, batch_size, num_workers)
        results["agreement"] = float(np.mean(others["predictions"] == scores["predictions"]))
    return results, scores


def judge_classes(scores: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Return the results for images of one label each, from what `score_logits` says of them."""
    labels, predictions, confidences = scores["labels"], scores["predictions"], scores["confidences"]
    bins = calibration_bins(confidences, predictions == labels)
    wrong = np.flatnonzero(predictions != labels)
    matrix = None
    if len(names) <= MAX_MATRIX_LABELS:
        matrix = sklearn_metrics.confusion_matrix(labels, predictions, labels=np.arange(len(names))).tolist()
    return {
        **single_label_metrics(scores, len(names)),
        "loss": float(scores["losses"].mean(dtype=np.float64)),
        "ece_bins": len(bins),
        "per_class": per_class_scores(labels, predictions, names),
        "mistakes": [
            describe_class(scores, names, int(image))
            for image in wrong[np.argsort(-confidences[wrong], kind="stable")][:NUM_MISTAKES]
        ],
        "confused_pairs": find_confused_pairs(labels, predictions, names),
        "confusion_matrix": matrix,
        "calibration": bins,
    }


def describe_class(scores: dict[str, np.ndarray], names: Sequence[str], image: int) -> dict[str, Any]:
    """Return what is true of an image of one label, and what the model says."""
    return {
        "image": image,
        "true": names[scores["labels"][image]],
        "predicted": names[scores["predictions"][image]],
        "confidence": float(scores["confidences"][image]),
    }


def find_confused_pairs(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """
    Return the most frequent mistakes: `true`, `predicted`, `count`, and `share`, that of all images of the true label.
    Equally frequent ones are sorted by share.
    """
    wrong = predictions != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    shares = counts / np.bincount(labels, minlength=len(names))[pairs[0]]
    order = np.lexsort((-shares, -counts))[:NUM_CONFUSED_PAIRS]
    return [
        {
            "true": names[pairs[0, index]],
            "predicted": names[pairs[1, index]],
            "count": int(counts[index]),
            "share": float(shares[index]),
        }
        for index in order
    ]


def judge_labels(
    scores: dict[str, np.ndarray], names: Sequence[str], thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """
    Return the results for images of any number of labels. `per_class` holds of every label `num_images`, the number of
    images that have it, `average_precision` (`None` without such images), `precision`, `recall`, `f1` and `threshold`.
    A mistake is a pair of image and label, and its `confidence` the probability of the wrong answer.
    """
    logits, truth = scores["logits"].astype(np.float64), scores["labels"] > 0.5
    thresholds = [0.5] * len(names) if thresholds is None else list(thresholds)
    per_label = per_label_scores(logits, truth, thresholds)
    present = predict_present(logits, thresholds)
    images, labels = np.nonzero(present != truth)
    # The logit of the answer that was given, for labels whose threshold is 0.5
    sizes = np.where(present, logits, -logits)[images, labels]
    order = np.argsort(-sizes, kind="stable")[:NUM_MISTAKES]
    return {
        **multi_label_metrics(logits, truth, thresholds),
        # The cross-entropy of the right answer, whose logit has the sign of the truth
        "loss": float(np.logaddexp(0, np.where(truth, -logits, logits)).mean()),
        "per_class": [
            {
                "label": name,
                "num_images": int(truth[:, index].sum()),
                "average_precision": per_label["average_precision"][index],
                **{key: float(per_label[key][index]) for key in ("precision", "recall", "f1")},
                "threshold": float(thresholds[index]),
            }
            for index, name in enumerate(names)
        ],
        "mistakes": [
            {
                "image": int(images[index]),
                "true": ("" if truth[images[index], labels[index]] else "no ") + names[labels[index]],
                "predicted": ("no " if truth[images[index], labels[index]] else "") + names[labels[index]],
                "confidence": float(expit(sizes[index])),
            }
            for index in order
        ],
    }


def judge_outputs(scores: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """
    Return the results for images with values. `per_class` holds of every output `r2` (`None` of a single image), `mae` and
    `rmse`. The largest errors are those in units of the standard deviation of the output's true values.
    """
    values, truth = scores["logits"].astype(np.float64), scores["labels"].astype(np.float64)
    per_output = [regression_metrics(values[:, [index]], truth[:, [index]]) for index in range(len(names))]
    metrics = regression_metrics(values, truth)
    errors = relative_errors(scores)
    order = np.argsort(-errors.max(axis=1), kind="stable")[:NUM_MISTAKES]
    return {
        **metrics,
        "loss": metrics["mse"],
        "per_class": [
            {"label": name, "r2": own.get("r2"), "mae": own["mae"], "rmse": own["rmse"]}
            for name, own in zip(names, per_output)
        ],
        "mistakes": [describe_output(scores, names, int(image), int(errors[image].argmax())) for image in order],
    }


def relative_errors(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Return the errors of estimates, of shape `(num_images, num_labels)`, in standard deviations of the true values."""
    truth = scores["labels"].astype(np.float64)
    deviations = truth.std(axis=0)
    return np.abs(scores["logits"] - truth) / np.where(deviations > 0, deviations, 1)


def describe_output(scores: dict[str, np.ndarray], names: Sequence[str], image: int, output: int) -> dict[str, Any]:
    """Return the true value of one output for an image, and the estimate."""
    return {
        "image": image,
        "output": names[output],
        "true": float(scores["labels"][image, output]),
        "predicted": float(scores["logits"][image, output]),
    }
