import math

import numpy as np
import pytest
import torch

from hf_mixer.evaluation.metrics import (
    METRICS,
    best_thresholds,
    calibration_bins,
    compute_metrics,
    confidence_interval,
    expected_calibration_error,
    per_class_scores,
    score_logits,
)


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


def test_scores_per_class_by_hand():
    labels, predictions = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 0, 2, 0])
    ant, bee, cat, dog = per_class_scores(labels, predictions, ["ant", "bee", "cat", "dog"])
    assert ant == {"label": "ant", "num_images": 3} | dict.fromkeys(("accuracy", "precision", "recall", "f1"), 2 / 3)
    # Predicted once, without images
    assert bee == {"label": "bee", "num_images": 0, "accuracy": None, "precision": 0, "recall": None, "f1": 0}
    assert (cat["num_images"], cat["accuracy"], cat["precision"]) == (2, 1 / 2, 1)
    assert dog == {"label": "dog", "num_images": 0} | dict.fromkeys(("accuracy", "precision", "recall", "f1"))


def test_interval_of_few_and_of_many_images():
    # Of 10 images, by Wilson's formula with z = 1.96
    assert confidence_interval(0.9, 10) == pytest.approx((0.59585, 0.98212), abs=1e-5)
    low, high = confidence_interval(1.0, 10)
    assert (low, high) == (pytest.approx(0.72247, abs=1e-5), pytest.approx(1))
    low, high = confidence_interval(0.8806, 5000)
    assert 0.8806 - low == pytest.approx(high - 0.8806, abs=1e-3) == pytest.approx(0.009, abs=1e-3)
    of_images = {key for metrics in METRICS.values() for key, metric in metrics.items() if metric.is_mean_over_images}
    assert of_images == {"accuracy", "top5_accuracy", "subset_accuracy"}


def one_hot(predictions, num_labels):
    return 9.0 * np.eye(num_labels, dtype=np.float32)[predictions]


def test_metrics_of_one_label_by_hand():
    # Right: 2 of 3 images of label 0, 1 of 2 of label 2; label 1 is predicted once without images, label 3 never
    labels, logits = np.array([0, 0, 0, 2, 2]), one_hot([0, 1, 0, 2, 0], 4)
    metrics = compute_metrics("single_label_classification", logits, labels)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["recall_macro"] == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert metrics["precision_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert metrics["f1_weighted"] == pytest.approx(2 / 3)
    # Expected agreement: label 0 has 3 of 5 in both, label 2 has 2 of 5 and 1 of 5
    chance = 3 / 5 * 3 / 5 + 2 / 5 * 1 / 5
    assert metrics["cohen_kappa"] == pytest.approx((3 / 5 - chance) / (1 - chance))


def test_top5_accuracy_is_one_of_more_than_five_labels():
    logits = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert compute_metrics("single_label_classification", logits, np.array([1, 0]))["top5_accuracy"] == 1 / 2
    assert "top5_accuracy" not in compute_metrics("single_label_classification", logits[:, :5], np.array([1, 0]))


def test_one_image_or_one_label_has_metrics_without_warnings():
    for num_labels in (2, 50):
        metrics = compute_metrics("single_label_classification", one_hot([1], num_labels), np.array([1]))
        assert (metrics["f1_macro"], metrics["balanced_accuracy"], metrics["cohen_kappa"]) == (1, 1, 0)
    assert compute_metrics("multi_label_classification", np.ones((1, 1)), np.zeros((1, 1)))["f1_micro"] == 0
    assert compute_metrics("regression", np.ones((1, 1)), np.zeros((1, 1))) == {"mae": 1, "mse": 1, "rmse": 1}


TRUTH = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
# Label 0 is ranked right, but two images are below its threshold; label 2 is predicted without images, label 3 never
LOGITS = np.array([[1, -1, -1, -1], [-1, 2, 3, -1], [-2, -2, -1, -1], [-3, 1, -1, -1]], dtype=np.float32)


def test_metrics_of_several_labels_by_hand():
    metrics = compute_metrics("multi_label_classification", LOGITS, TRUTH)
    # Ranks of the images that have label 1: first and last
    assert metrics["mean_average_precision"] == pytest.approx((1 + (1 / 1 + 2 / 4) / 2) / 2)
    assert metrics["precision_micro"] == pytest.approx(2 / 4)
    assert metrics["recall_micro"] == pytest.approx(2 / 4)
    assert metrics["f1_micro"] == pytest.approx(1 / 2)
    # Over the three labels that occur
    assert metrics["precision_macro"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics["recall_macro"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics["subset_accuracy"] == 1 / 4


def test_thresholds_decide_which_labels_are_present():
    metrics = compute_metrics("multi_label_classification", LOGITS, TRUTH, [0.2, 0.5, 0.99, 0.5])
    assert metrics["recall_micro"] == 3 / 4
    assert metrics["precision_micro"] == 3 / 4


def test_best_thresholds_find_the_highest_f1():
    thresholds = best_thresholds(LOGITS, TRUTH)
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(float)))
    # Between the second and the third image of label 0; labels without images keep a half
    assert probabilities[2, 0] < thresholds[0] < probabilities[1, 0]
    assert thresholds[2:] == [0.5, 0.5]

    def f1(label, threshold):
        present = probabilities[:, label] >= threshold
        return 2 * (present & (TRUTH[:, label] > 0)).sum() / (present.sum() + TRUTH[:, label].sum())

    for label in (0, 1):
        assert f1(label, thresholds[label]) == max(f1(label, t) for t in np.linspace(0, 1, 1000))


def test_metrics_of_values_by_hand():
    metrics = compute_metrics("regression", np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 3.0, 5.0]))
    assert metrics == pytest.approx({"mae": 2 / 3, "mse": 2 / 3, "rmse": (2 / 3) ** 0.5, "r2": 1 - 2 / 8})
    two = compute_metrics("regression", np.array([[1.0, 0], [2, 0], [6, 3]]), np.array([[1.0, 0], [3, 0], [5, 0]]))
    assert two["rmse"] == pytest.approx(((2 / 3) ** 0.5 + 3**0.5) / 2)


@pytest.mark.parametrize("problem_type", METRICS)
def test_every_metric_is_in_the_table(problem_type):
    random = np.random.default_rng(0)
    logits = random.normal(size=(30, 6))
    labels = random.integers(0, 6, 30) if problem_type.startswith("single") else random.integers(0, 2, (30, 6))
    metrics = compute_metrics(problem_type, logits, labels)
    assert metrics.keys() == METRICS[problem_type].keys()
    assert all(0 <= value <= 1 for key, value in metrics.items() if METRICS[problem_type][key].is_share)


def test_metrics_need_a_known_problem_and_images():
    with pytest.raises(ValueError, match="unknown problem type 'ranking', expected one of single_label_"):
        compute_metrics("ranking", LOGITS, TRUTH)
    with pytest.raises(ValueError, match="no images"):
        compute_metrics("regression", LOGITS[:0], TRUTH[:0])


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
