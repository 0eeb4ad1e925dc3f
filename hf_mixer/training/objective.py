# SPDX-License-Identifier: Apache-2.0
"""What a run optimizes: the loss that fits the kind of labels, and the metric that picks the best model."""

import numpy as np

from transformers import EvalPrediction

from ..data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, problem_type_of
from ..evaluation.metrics import METRICS, compute_metrics
from .arguments import MixerTrainingArguments
from .balance import balanced_class_weights, balanced_image_weights
from .losses import ClassificationLoss, ImageLoss, MultiLabelLoss, RegressionLoss
from .regression import LabelScale


# Arguments that only some kinds of labels have a use for, with the value that leaves each of them out
SPECIFIC_ARGUMENTS: dict[str, tuple[object, tuple[str, ...]]] = {
    "binary_cross_entropy": (False, (SINGLE_LABEL,)),
    "label_threshold": ("0.5", (MULTI_LABEL,)),
    "regression_loss": ("mse", (REGRESSION,)),
    "label_smoothing_factor": (0.0, (SINGLE_LABEL, MULTI_LABEL)),
    "class_weights": ("none", (SINGLE_LABEL, MULTI_LABEL)),
    "balanced_sampling": (False, (SINGLE_LABEL, MULTI_LABEL)),
    "cutmix_alpha": (0.0, (SINGLE_LABEL, MULTI_LABEL)),
}
NEED_ALL_LABELS = ("class_weights", "balanced_sampling")


def check_arguments(args: MixerTrainingArguments, problem_type: str, has_train_labels: bool) -> None:
    """
    Refuse arguments that have no use for the kind of labels, or need the labels of all images before the training.

    Raises:
        `ValueError`: the message names the argument.
    """
    for name, (neutral, problem_types) in SPECIFIC_ARGUMENTS.items():
        value = getattr(args, name)
        if value == neutral:
            continue
        if problem_type not in problem_types:
            raise ValueError(
                f"--{name} is for {' and '.join(problem_types)}, not for {problem_type}: leave it out (got {value})"
            )
        if name in NEED_ALL_LABELS and not has_train_labels:
            raise ValueError(f"--{name} needs to know all labels before the training, and a stream does not tell them")


def check_metric(name: str | None, problem_type: str, num_labels: int) -> None:
    """
    Refuse a metric to pick the best model by that no evaluation computes.

    Raises:
        `ValueError`: the message lists the metrics.
    """
    names = ["loss", *METRICS[problem_type]]
    if num_labels <= 5 and "top5_accuracy" in names:
        names.remove("top5_accuracy")
    if name is not None and name.removeprefix("eval_") not in names:
        raise ValueError(f"--metric_for_best_model has to be one of {', '.join(names)}, got {name!r}")


def measure(config, prediction: EvalPrediction) -> dict[str, float]:
    """Return the metrics that belong to the problem type of a model with this configuration."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return compute_metrics(problem_type_of(config), logits, labels, config.label_thresholds)


def build_loss(
    args: MixerTrainingArguments,
    problem_type: str,
    num_labels: int,
    train_labels: np.ndarray | None = None,
    scale: LabelScale | None = None,
) -> ImageLoss:
    """Return the loss that the arguments ask for; `train_labels` and `scale` are those of [`MixerTrainer`]."""
    weights = None
    if args.class_weights == "balanced" and train_labels is not None:
        # As the images are drawn: balanced sampling leaves the classes that it has balanced with nothing to make up for
        drawn = balanced_image_weights(train_labels, num_labels) if args.balanced_sampling else None
        weights = balanced_class_weights(train_labels, num_labels, drawn).to(args.device)
    if problem_type == SINGLE_LABEL:
        return ClassificationLoss(args.label_smoothing_factor, args.binary_cross_entropy, weights)
    if problem_type == MULTI_LABEL:
        return MultiLabelLoss(args.label_smoothing_factor, weights)
    return RegressionLoss(args.regression_loss, None if scale is None else scale.std.to(args.device))
