# SPDX-License-Identifier: Apache-2.0
"""
Classify the handwritten digits that were held back from training, and draw them.

    python scripts/train.py --output_dir outputs/digits
    python scripts/digits_demo.py outputs/digits

Prints the accuracy of the saved folder in a `pipeline`, writes `predictions.png` into it, and fails under 97 %.
"""

import argparse
import sys
from pathlib import Path

from transformers import pipeline

import hf_mixer  # noqa: F401 (registers the model)
from hf_mixer.data import load_digits_dataset
from hf_mixer.plots import save_contact_sheet


GOAL = 0.97


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of scripts/train.py")
    folder = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        sys.exit(f"error: {folder} holds no model: run scripts/train.py --output_dir {folder} first")

    test = load_digits_dataset()["test"]
    images, labels = list(test["image"]), [str(label) for label in test["label"]]
    classifier = pipeline("image-classification", str(folder))
    predictions = [result[0]["label"] for result in classifier(images, top_k=1, batch_size=64)]

    accuracy = sum(map(str.__eq__, predictions, labels)) / len(labels)
    sheet = folder / "predictions.png"
    save_contact_sheet(sheet, images, predictions, labels)
    print(f"{accuracy:.1%} of {len(labels)} held-back digits are right; see {sheet}")
    if accuracy < GOAL:
        sys.exit(f"error: expected at least {GOAL:.0%}")


if __name__ == "__main__":
    main()
