# SPDX-License-Identifier: Apache-2.0
"""The file of predictions that a run with `do_predict` leaves."""

import csv
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.labels import MULTI_LABEL, REGRESSION
from ..evaluation.prediction import Prediction, Predictor


PREDICTIONS_NAME = "predictions.csv"


def write_predictions(
    path: str | os.PathLike, logits: np.ndarray, sources: Sequence[dict[str, Any]], predictor: Predictor
) -> None:
    """
    Write a CSV file with a row for each image: `row`, its number, `path`, if it has one, and what the model says of it:
    `label` and `score`, for several labels JSON lists as `labels` and `scores`, for regression a column for each output.

    Args:
        logits (`np.ndarray` of shape `(num_images, num_labels)`):
            The outputs of the model.
        sources (`Sequence[dict]`):
            The images in the same order, undecoded, as `datasets` has them.
        predictor ([`~hf_mixer.evaluation.prediction.Predictor`]):
            What interprets the outputs. With several labels per image, its `top_k` has to be the number of labels.
    """
    if predictor.problem_type == REGRESSION:
        columns = predictor.labels
    else:
        columns = ["labels", "scores"] if predictor.problem_type == MULTI_LABEL else ["label", "score"]
    predictions = predictor.interpret(torch.from_numpy(logits).float())
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "path", *columns])
        for row, (source, prediction) in enumerate(zip(sources, predictions, strict=True)):
            writer.writerow([row, source["path"] or "", *list_answer(prediction, predictor.problem_type)])


def list_answer(prediction: Prediction, problem_type: str) -> list:
    """Return what a model says of an image as cells of a table, the most probable label first."""
    if problem_type == REGRESSION:
        return [entry["score"] for entry in prediction.scores]
    scores = [{**entry, "score": round(entry["score"], 6)} for entry in prediction.scores]
    if problem_type != MULTI_LABEL:
        return list(scores[0].values())
    present = [entry for entry in scores if entry["label"] in (prediction.labels or ())]
    return [json.dumps([entry[key] for entry in present], ensure_ascii=False) for key in ("label", "score")]
