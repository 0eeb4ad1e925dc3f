# SPDX-License-Identifier: Apache-2.0
"""
Classify the handwritten digits that were held back from training, and draw them.

    hf-mixer train --output_dir outputs/digits
    python scripts/digits_demo.py outputs/digits

Prints the accuracy of the saved folder in a `pipeline`, writes `digits.png` into it, and fails under 97 %.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from transformers import pipeline

import hf_mixer  # noqa: F401 (registers the model)
from hf_mixer.data.datasets import load_digits_dataset


GOAL = 0.97


def save_contact_sheet(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    predictions: Sequence[str],
    labels: Sequence[str],
    columns: int = 12,
) -> None:
    """Save a picture of images with the label predicted for each; wrong ones are red and name the right label."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, prediction, label in zip(grid, images, predictions, labels):
        is_right = prediction == label
        axes.imshow(image, cmap="gray")
        title = prediction if is_right else f"{prediction} (is {label})"
        axes.set_title(title, color="black" if is_right else "red", fontsize=9)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of hf-mixer train")
    folder = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        sys.exit(f"error: {folder} holds no model: run hf-mixer train --output_dir {folder} first")

    test = load_digits_dataset()["test"]
    images, labels = list(test["image"]), [str(label) for label in test["label"]]
    classifier = pipeline("image-classification", str(folder))
    predictions = [result[0]["label"] for result in classifier(images, top_k=1, batch_size=64)]

    num_right = sum(prediction == label for prediction, label in zip(predictions, labels))
    accuracy = num_right / len(labels)
    sheet = folder / "digits.png"
    save_contact_sheet(sheet, images, predictions, labels)
    print(f"{accuracy:.1%} of {len(labels)} held-back digits are right; see {sheet}")
    if accuracy < GOAL:
        sys.exit(f"error: expected at least {GOAL:.0%}")


if __name__ == "__main__":
    main()
