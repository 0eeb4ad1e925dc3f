# SPDX-License-Identifier: Apache-2.0
"""Running a classifier over a data set."""

import time

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from sklearn.metrics import confusion_matrix
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.images import collate_images
from ..data.loaders import NamedRows
from .metrics import calibration_bins, expected_calibration_error, per_class_accuracy, score_logits


# With more labels the matrix would fill gigabytes
MAX_MATRIX_LABELS = 5000


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
    parts, done = [], 0
    is_silent = not accelerator.is_main_process
    with tqdm(total=len(dataset), desc="Evaluating", unit=" images", disable=is_silent) as progress:
        for batch in loader:
            scores = score_logits(model(batch["pixel_values"]).logits, batch["labels"])
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

    labels, predictions = scores["labels"], scores["predictions"]
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    bins = calibration_bins(scores["confidences"], predictions == labels)
    results = {
        "top1": float(np.mean(scores["ranks"] < 1)),
        "top5": float(np.mean(scores["ranks"] < 5)) if len(names) > 5 else None,
        "loss": float(scores["losses"].mean(dtype=np.float64)),
        "ece": expected_calibration_error(bins),
        "ece_bins": len(bins),
        "per_class": per_class_accuracy(labels, predictions, names),
        "confusion_matrix": None,
        "calibration": bins,
        "images_per_second": len(labels) / duration,
    }
    if len(names) <= MAX_MATRIX_LABELS:
        matrix = confusion_matrix(labels, predictions, labels=np.arange(len(names)))
        results["confusion_matrix"] = matrix.tolist()
    if reference is not None:
        others = predict_dataset(reference, dataset, accelerator, batch_size, num_workers)
        results["agreement"] = float(np.mean(others["predictions"] == predictions))
    return results
