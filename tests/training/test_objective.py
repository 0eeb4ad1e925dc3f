"""Arguments that do not fit the labels."""

import pytest

from hf_mixer.training import MixerTrainingArguments
from hf_mixer.training.objective import leave_out_arguments
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


def test_what_a_recipe_sets_for_classes_is_left_out_of_a_regression(tmp_path):
    args = MixerTrainingArguments(str(tmp_path), label_smoothing_factor=0.1, cutmix_alpha=1.0, mixup_alpha=0.8)
    recipe = ["label_smoothing_factor", "mixup_alpha", "learning_rate", "class_weights"]
    assert leave_out_arguments(args, "multi_label_classification", recipe) == []
    assert leave_out_arguments(args, "regression", recipe) == ["label_smoothing_factor"]
    # What the recipe does not set is left to be refused
    assert (args.label_smoothing_factor, args.cutmix_alpha, args.mixup_alpha) == (0.0, 1.0, 0.8)
