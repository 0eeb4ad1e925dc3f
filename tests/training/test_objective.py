"""Arguments that do not fit the labels."""

import pytest

from tests.helpers import make_trainer


@pytest.mark.parametrize(
    ("problem_type", "arguments", "message"),
    [
        ("regression", {"label_smoothing_factor": 0.1}, "--label_smoothing_factor is for .*, not for regression"),
        ("regression", {"class_weights": "balanced"}, "--class_weights is for .*, not for regression"),
        ("regression", {"balanced_sampling": True}, "--balanced_sampling is for .*, not for regression"),
        (
            "regression",
            {"cutmix_alpha": 1.0},
            r"--cutmix_alpha is for .*, not for regression: leave it out \(got 1.0\)",
        ),
        (
            "regression",
            {"metric_for_best_model": "accuracy"},
            "has to be one of loss, r2, mae, mse, rmse, got 'accuracy'",
        ),
        ("multi_label_classification", {"binary_cross_entropy": True}, "--binary_cross_entropy is for single_label"),
        (
            "multi_label_classification",
            {"regression_loss": "l1"},
            "--regression_loss is for regression, not for multi",
        ),
        (
            "multi_label_classification",
            {"metric_for_best_model": "eval_map"},
            "has to be one of loss, mean_average_precision, .*subset_accuracy, got 'eval_map'",
        ),
        ("single_label_classification", {"label_threshold": "best_f1"}, "--label_threshold is for multi_label"),
    ],
)
def test_arguments_that_do_not_fit_the_labels_are_refused(problem_type, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, problem_type=problem_type, **arguments)


@pytest.mark.parametrize("arguments", [{"class_weights": "balanced"}, {"balanced_sampling": True}])
def test_a_stream_does_not_tell_how_often_classes_occur(arguments, tmp_path):
    images = make_trainer(tmp_path).train_dataset
    with pytest.raises(ValueError, match=f"--{next(iter(arguments))} needs to know all labels before the training"):
        make_trainer(tmp_path, train_dataset=images, **arguments)
