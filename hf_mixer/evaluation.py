# SPDX-License-Identifier: Apache-2.0
"""What a classifier gets right: its predictions on a data set, and the figures that sum them up."""

import time

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from sklearn.metrics import confusion_matrix
from torch.utils.data import DataLoader
from tqdm import tqdm

from .data import collate_images
from .data_loading import NamedRows


NUM_BINS = 15
# With more labels the matrix would fill gigabytes
MAX_MATRIX_LABELS = 5000


def score_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Judge the predictions for one batch.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            The outputs of a classifier, before the softmax.
        labels (`torch.Tensor` of shape `(batch_size,)`):
            The indices of the right labels.

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


def top_k_accuracy(ranks: np.ndarray, k: int) -> float:
    """Return the share of images whose right label is among the `k` most likely, from the `ranks` of `score_logits`."""
    return float(np.mean(ranks < k))


def per_class_accuracy(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> list[float | None]:
    """Return the share of every label's images that are classified right, `None` for a label without images."""
    counts = np.bincount(labels, minlength=num_labels)
    hits = np.bincount(labels[predictions == labels], minlength=num_labels)
    return [float(hit / count) if count else None for hit, count in zip(hits, counts)]


def calibration_bins(
    confidences: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS
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
        count = int(inside.sum())
        result.append(
            {
                "confidence": float(confidences[inside].mean()),
                "accuracy": float(correct[inside].mean()),
                "count": count,
            }
            if count
            else None
        )
    return result


def expected_calibration_error(bins: list[dict[str, float] | None]) -> float:
    """
    Return the mean distance between confidence and accuracy over the bins of `calibration_bins`, weighted by their
    number of images: equation 3 of [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599).
    """
    filled = [entry for entry in bins if entry is not None]
    total = sum(entry["count"] for entry in filled)
    return sum(entry["count"] / total * abs(entry["accuracy"] - entry["confidence"]) for entry in filled)


@torch.inference_mode()
def predict_dataset(
    model, dataset: Dataset, accelerator: Accelerator, batch_size: int = 64, num_workers: int = 0
) -> dict[str, np.ndarray]:
    """
    Run a classifier over a data set, shared out among the processes of `accelerator`.

    Args:
        model ([`MixerForImageClassification`]):
            The classifier. It is moved to the device of the accelerator.
        dataset (`Dataset`):
            Images and labels under an [`ImageTransform`].
        accelerator (`Accelerator`):
            Accelerate's handle on devices and processes.
        batch_size (`int`, *optional*, defaults to 64):
            Images per forward pass and process.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that decode images, for each process that runs the model.

    Returns:
        `dict[str, np.ndarray]`: what `score_logits` says of every image, in the order of the data set and each image
        once, on every process.

    Raises:
        `ValueError`: the data set is empty, an image cannot be read, or the output for an image is not finite; the
        message names the image.
    """
    if len(dataset) == 0:
        raise ValueError("the data set holds no images")
    loader = accelerator.prepare_data_loader(
        DataLoader(
            NamedRows(dataset),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=collate_images,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    model = model.eval()
    if getattr(model, "hf_quantizer", None) is None:  # a quantized model stays where it was loaded
        model = model.to(accelerator.device)
    parts, done = [], 0
    with tqdm(
        total=len(dataset), desc="Evaluating", unit=" images", disable=not accelerator.is_main_process
    ) as progress:
        for batch in loader:
            scores = score_logits(model(batch["pixel_values"]).logits, batch["labels"])
            # Accelerate fills the last round of batches up with images from the start; here they go again
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


def evaluate_model(
    model, dataset: Dataset, accelerator: Accelerator, batch_size: int = 64, num_workers: int = 0, reference=None
) -> dict:
    """
    Measure a classifier on a data set; for the other arguments and errors see `predict_dataset`.

    Args:
        reference ([`MixerForImageClassification`], *optional*):
            A model to compare with, such as the one that `model` was quantized from.

    Returns:
        `dict`: ready for JSON:

        - `top1`, `top5`: share of images whose right label is the most likely, or one of the five most likely (`None`
          with fewer than six labels);
        - `loss`: mean cross-entropy, in nats;
        - `ece`, `ece_bins`: expected calibration error and its number of bins;
        - `per_class`: `label`, `num_images` and `accuracy` of every label of the model (`None` without images);
        - `confusion_matrix`: number of images, true labels in rows, predicted ones in columns (`None` with more than
          5,000 labels);
        - `calibration`: see `calibration_bins`;
        - `images_per_second`: reading and decoding included;
        - `agreement`: share of images for which `reference`, if there is one, has the same most likely label.
    """
    start = time.perf_counter()
    scores = predict_dataset(model, dataset, accelerator, batch_size, num_workers)
    duration = time.perf_counter() - start

    agreement = {}
    if reference is not None:
        others = predict_dataset(reference, dataset, accelerator, batch_size, num_workers)
        agreement["agreement"] = float(np.mean(others["predictions"] == scores["predictions"]))

    num_labels = model.config.num_labels
    labels, predictions = scores["labels"], scores["predictions"]
    counts = np.bincount(labels, minlength=num_labels)
    accuracies = per_class_accuracy(labels, predictions, num_labels)
    matrix = None
    if num_labels <= MAX_MATRIX_LABELS:
        matrix = confusion_matrix(labels, predictions, labels=np.arange(num_labels)).tolist()
    bins = calibration_bins(scores["confidences"], predictions == labels)
    return {
        "top1": top_k_accuracy(scores["ranks"], 1),
        "top5": top_k_accuracy(scores["ranks"], 5) if num_labels > 5 else None,
        "loss": float(scores["losses"].mean(dtype=np.float64)),
        "ece": expected_calibration_error(bins),
        "ece_bins": len(bins),
        "per_class": [
            {
                "label": model.config.id2label[index],
                "num_images": int(counts[index]),
                "accuracy": accuracies[index],
            }
            for index in range(num_labels)
        ],
        "confusion_matrix": matrix,
        "calibration": bins,
        "images_per_second": len(labels) / duration,
        **agreement,
    }
