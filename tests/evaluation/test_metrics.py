import math

import numpy as np
import pytest
import torch

from hf_mixer.evaluation.metrics import calibration_bins, expected_calibration_error, per_class_accuracy, score_logits


def test_scores_of_a_batch_by_hand():
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    scores = score_logits(logits, torch.tensor([0, 2, 0]))
    assert scores["predictions"].tolist() == [1, 0, 0]
    assert scores["ranks"].tolist() == [1, 2, 0]
    assert scores["finite"].tolist() == [False, True, True]
    torch.testing.assert_close(scores["confidences"][:2], torch.tensor([3 / 4, 1 / 3]))
    torch.testing.assert_close(scores["losses"][:2], torch.tensor([math.log(4), math.log(3)]))


def test_equal_logits_have_one_prediction_and_rank():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 10, dtype=torch.bfloat16), torch.randint(10, (200,))
    scores = score_logits(logits, labels)
    assert ((scores["ranks"] == 0) == (scores["predictions"] == labels)).all()


def test_accuracy_per_class():
    labels, predictions = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 0, 2, 0])
    assert per_class_accuracy(labels, predictions, ["ant", "bee", "cat"]) == [
        {"label": "ant", "num_images": 3, "accuracy": 2 / 3},
        {"label": "bee", "num_images": 0, "accuracy": None},
        {"label": "cat", "num_images": 2, "accuracy": 1 / 2},
    ]


def test_calibration_by_hand():
    confidences, correct = np.array([0.9, 0.2, 0.55, 0.95, 0.6]), np.array([True, False, True, False, True])
    # Bins of width 0.2, closed above: 0.2 | 0.55 and 0.6 | 0.9 and 0.95
    bins = calibration_bins(confidences, correct, num_bins=5)
    assert [entry and entry["count"] for entry in bins] == [1, None, 2, None, 2]
    assert bins[2] == {"confidence": pytest.approx(0.575), "accuracy": 1.0, "count": 2}
    assert expected_calibration_error(bins) == pytest.approx(1 / 5 * 0.2 + 2 / 5 * 0.425 + 2 / 5 * 0.425)


def test_calibration_is_zero_where_confidence_equals_accuracy():
    bins = calibration_bins(np.array([0.75] * 4 + [1.0] * 3 + [0.0]), np.array([1, 1, 1, 0, 1, 1, 1, 0], dtype=bool))
    assert len(bins) == 15
    assert sum(entry["count"] for entry in bins if entry) == 8
    assert expected_calibration_error(bins) == 0
