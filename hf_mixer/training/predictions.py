# SPDX-License-Identifier: Apache-2.0
"""The file of predictions that a run with `do_predict` leaves."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of
from ..evaluation.metrics import predict_present


PREDICTIONS_NAME = "predictions.csv"


def write_predictions(path: str | os.PathLike, logits: np.ndarray, sources: Sequence[dict[str, Any]], config) -> None:
    """
    Write a CSV file with a row for each image: `row`, its number, `path`, if it has one, and what the model says of it:
    `label` and `score`, for several labels JSON lists as `labels` and `scores`, for regression a column for each output.

    Args:
        logits (`np.ndarray` of shape `(num_images, num_labels)`):
            The outputs of the model.
        sources (`Sequence[dict]`):
            The images in the same order, undecoded, as `datasets` has them.
        config ([`MixerConfig`]):
            The configuration of the model.
    """
    header, answers = list_answers(logits, config)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "path", *header])
        for row, (source, answer) in enumerate(zip(sources, answers, strict=True)):
            writer.writerow([row, source["path"] or "", *answer])


def list_answers(logits: np.ndarray, config) -> tuple[list[str], Iterator[list]]:
    """Return the columns of the answers, and the answer for each image."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    problem_type = problem_type_of(config)
    if problem_type == REGRESSION:
        return names, iter(logits.tolist())
    tensor = torch.from_numpy(logits).float()
    if problem_type == MULTI_LABEL:
        present, scores = predict_present(logits, config.label_thresholds), tensor.sigmoid().tolist()
        return ["labels", "scores"], (list_present(names, *entry) for entry in zip(present, scores))
    best = tensor.softmax(dim=1).max(dim=1)
    return ["label", "score"], (
        [names[index], round(score, 6)] for index, score in zip(best.indices.tolist(), best.values.tolist())
    )


def list_present(names: Sequence[str], present: Sequence[bool], scores: Sequence[float]) -> list[str]:
    """Return the labels that are present and their probabilities, as JSON lists, the most probable first."""
    found = sorted(((score, name) for name, here, score in zip(names, present, scores) if here), reverse=True)
    labels, values = [name for _, name in found], [round(score, 6) for score, _ in found]
    return [json.dumps(labels, ensure_ascii=False), json.dumps(values)]
