# SPDX-License-Identifier: Apache-2.0
"""Images that show what a model can do: some that stand for all its answers, and one that goes with the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from scipy.special import expit

from ..data.images import ImageConversion, open_source
from ..data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..image_processing_pil_mixer import convert_pil_image
from .evaluate import relative_errors
from .metrics import predict_present
from .prediction import Prediction


# An example of at most so many pixels a side is saved without a loss, and a larger one with at most so many
LARGEST_PNG = 256
LARGEST_JPEG = 512
# Images that are tried as the example
MAX_CANDIDATES = 20


def rank_images(results: dict[str, Any], scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Sort the images of an evaluation by what the model makes of them.

    Args:
        results (`dict`), scores (`dict`):
            What `evaluate_model` returns.

    Returns:
        `dict[str, np.ndarray]`: the numbers of the images. Of a model that chooses labels first `right` and then `wrong`,
        both from the most to the least confident answer. With several labels per image, an answer is right if they all
        are, and as confident as the label that is closest to its threshold. In regression only `estimates`, from the
        smallest to the largest error.
    """
    if results["problem_type"] == REGRESSION:
        return {"estimates": np.argsort(relative_errors(scores).max(axis=1), kind="stable")}
    if results["problem_type"] == SINGLE_LABEL:
        is_right, confidences = scores["predictions"] == scores["labels"], scores["confidences"]
    else:
        thresholds = [entry["threshold"] for entry in results["per_class"]]
        logits = scores["logits"].astype(np.float64)
        is_right = (predict_present(logits, thresholds) == (scores["labels"] > 0.5)).all(axis=1)
        confidences = np.abs(expit(logits) - thresholds).min(axis=1)
    order = np.argsort(-confidences, kind="stable")
    return {"right": order[is_right[order]], "wrong": order[~is_right[order]]}


def save_example(
    folder: Path,
    results: dict[str, Any],
    scores: dict[str, np.ndarray],
    dataset: Dataset,
    predict: Callable[[list[dict]], list[Prediction]],
    conversion: ImageConversion,
) -> dict[str, Any] | None:
    """
    Save an image that the model gets right, of those the one of median confidence; in regression that of median error.

    Nothing but its pixels is kept, upright and converted as for the model: no metadata, place or comment. Images of up to
    256 x 256 pixels become `example.png`, others `example.jpg` of up to 512 pixels a side. What is saved is right as well,
    or else the next image is taken.

    Args:
        folder (`Path`):
            Where to save it.
        results (`dict`), scores (`dict`):
            What `evaluate_model` returns.
        dataset (`Dataset`):
            The images, in a column `image`, undecoded.
        predict ([`Predictor`]):
            Says what the model sees.
        conversion ([`ImageConversion`]):
            What is done with images of the data before the image processor gets them.

    Returns:
        `dict`: the name of the `file`, and its true `label`: a name, a list of names, a value or a list of values. `None`
        if the model gets no image right.
    """
    ranked = next(iter(rank_images(results, scores).values()))
    outwards = np.argsort(np.abs(np.arange(len(ranked)) - len(ranked) // 2), kind="stable")
    for image in ranked[outwards[:MAX_CANDIDATES]].tolist():
        label = name_truth(results, scores, image)
        path = save_image(conversion(open_source(dataset[image]["image"])), folder)
        [prediction] = predict([{"path": str(path), "bytes": None}])
        if prediction.scores and agrees(prediction, results["problem_type"], label):
            return {"file": path.name, "label": label}
        path.unlink()
    return None


def name_truth(results: dict[str, Any], scores: dict[str, np.ndarray], image: int) -> Any:
    """Return what is true of an image, ready for JSON."""
    names, truth = [entry["label"] for entry in results["per_class"]], scores["labels"][image]
    if results["problem_type"] == SINGLE_LABEL:
        return names[truth]
    if results["problem_type"] == MULTI_LABEL:
        return [name for name, is_present in zip(names, truth > 0.5) if is_present]
    # All digits that a number in float32 has
    values = [float(f"{value:.7g}") for value in truth]
    return values if len(values) > 1 else values[0]


def agrees(prediction: Prediction, problem_type: str, label: Any) -> bool:
    """Whether a model says the right thing. Every value counts as right in regression."""
    if problem_type == SINGLE_LABEL:
        return prediction.scores[0]["label"] == label
    return problem_type == REGRESSION or prediction.labels == label


def save_image(image: Image.Image, folder: Path) -> Path:
    """Save the pixels of an image, and nothing else of it, into a folder."""
    pixels = np.asarray(convert_pil_image(image, num_channels=1 if image.mode in ("1", "L") else 3))
    image = Image.fromarray(pixels)
    if max(image.size) <= LARGEST_PNG:
        image.save(folder / "example.png", optimize=True)
        return folder / "example.png"
    image.thumbnail((LARGEST_JPEG, LARGEST_JPEG), Image.Resampling.LANCZOS)
    image.save(folder / "example.jpg", quality=90, optimize=True)
    return folder / "example.jpg"
