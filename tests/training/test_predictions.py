import csv
import math

import numpy as np
import pytest

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.evaluation.prediction import Predictor
from hf_mixer.training.predictions import write_predictions


SHARE = round(1 / (1 + math.exp(-2)), 6)


@pytest.mark.parametrize(
    ("problem_type", "thresholds", "expected"),
    [
        ("single_label_classification", None, {"label": "dog", "score": str(SHARE)}),
        ("multi_label_classification", None, {"labels": '["dog"]', "scores": f"[{SHARE}]"}),
        ("multi_label_classification", [0.4, 0.9], {"labels": '["cat"]', "scores": "[0.5]"}),
        ("regression", None, {"cat": "0.0", "dog": "2.0"}),
    ],
)
def test_predictions_of_every_kind_of_label_are_a_table(problem_type, thresholds, expected, tmp_path):
    names = {0: "cat", 1: "dog"}
    labels = {"problem_type": problem_type, "id2label": names, "label_thresholds": thresholds}
    model = MixerForImageClassification(MixerConfig(hidden_size=8, num_hidden_layers=1, channel_mlp_dim=8, **labels))
    logits = np.array([[0.0, 2.0]], dtype=np.float32)
    if problem_type == "multi_label_classification" and thresholds is None:
        logits[0, 0] = -1
    write_predictions(
        tmp_path / "predictions.csv",
        logits,
        [{"path": "a, b.png", "bytes": None}],
        Predictor(model, MixerImageProcessorPil()),
    )
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"row": "0", "path": "a, b.png", **expected}]
