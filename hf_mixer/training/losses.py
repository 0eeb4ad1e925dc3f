# SPDX-License-Identifier: Apache-2.0
"""The losses for each kind of label."""

from abc import ABC, abstractmethod

import torch
from torch.nn import functional as F


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share that is not in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing has to be in [0, 1), got {label_smoothing}")


class ImageLoss(ABC):
    """
    Loss function for `Trainer(compute_loss_func=...)`.

    While training, the sum over the batch is divided by the number of images in the whole optimizer step, on all
    devices and all accumulated batches, so that neither changes the result. In evaluation, where the logits carry no
    gradients, it is the plain mean over the batch: without label smoothing, weights and scale, so that it compares
    models whatever they were trained with.
    """

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        """
        Args:
            outputs:
                The output of the model, with `logits` of shape `(batch_size, num_labels)`.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`):
                Class indices, or one number for every label.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                What to divide the sum by: the number of images or, with numbers for every label, that times the number
                of labels, which is how `Trainer` counts them. By default the batch size.

        Returns:
            `torch.Tensor`: the loss, a scalar in float32.
        """
        logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
        loss = self.total(logits, labels, is_training=logits.requires_grad)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch / labels[0].numel())

    @abstractmethod
    def total(self, logits: torch.Tensor, labels: torch.Tensor, is_training: bool) -> torch.Tensor:
        """Return the sum of the losses of a batch of images, a scalar, from `logits` in float32."""


class ClassificationLoss(ImageLoss):
    """
    The loss of images with one label each: softmax and cross-entropy; see [`ImageLoss`].

    Args:
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is spread evenly over all labels, in [0, 1).
        binary_cross_entropy (`bool`, *optional*, defaults to `False`):
            Whether each label is a decision of its own: sigmoid and binary cross-entropy, summed over the labels, as
            in the pre-training of the Mixer paper on ImageNet-21k and JFT.
        class_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            Factors on the losses of the labels while training, as `weight` of `torch.nn.functional.cross_entropy`. With
            binary cross-entropy, an image has the factor of its label.

    Raises:
        `ValueError`: `label_smoothing` is not in [0, 1).
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        binary_cross_entropy: bool = False,
        class_weights: torch.Tensor | None = None,
    ):
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        self.binary_cross_entropy = binary_cross_entropy
        self.class_weights = class_weights

    def total(self, logits: torch.Tensor, labels: torch.Tensor, is_training: bool) -> torch.Tensor:
        smoothing = self.label_smoothing if is_training else 0.0
        weights = self.class_weights.to(logits.device) if is_training and self.class_weights is not None else None
        if not self.binary_cross_entropy:
            return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
        targets = targets.to(logits.dtype)
        of_images = None if weights is None else (targets @ weights)[:, None]
        targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
        return F.binary_cross_entropy_with_logits(logits, targets, of_images, reduction="sum")


class MultiLabelLoss(ImageLoss):
    """
    The loss of images with any number of labels: sigmoid and binary cross-entropy, the mean over the labels; see
    [`ImageLoss`].

    Args:
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is split evenly between yes and no, in [0, 1).
        positive_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            Factors on the losses of the labels that are present, while training: `pos_weight` of
            `torch.nn.BCEWithLogitsLoss`.

    Raises:
        `ValueError`: `label_smoothing` is not in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0, positive_weights: torch.Tensor | None = None):
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        self.positive_weights = positive_weights

    def total(self, logits: torch.Tensor, labels: torch.Tensor, is_training: bool) -> torch.Tensor:
        targets, weights = labels.to(logits.dtype), None
        if is_training:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            weights = None if self.positive_weights is None else self.positive_weights.to(logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum", pos_weight=weights)
        return loss / logits.shape[-1]


class RegressionLoss(ImageLoss):
    """
    The loss of numbers as labels: their squared or absolute error, the mean over the labels; see [`ImageLoss`].

    Args:
        kind (`str`, *optional*, defaults to `"mse"`):
            `"mse"` for the squared error, `"l1"` for the absolute one.
        scale (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            The unit of errors while training, such as the standard deviation of each label. Evaluation is in the units of
            the labels.

    Raises:
        `ValueError`: `kind` is neither.
    """

    FUNCTIONS = {"mse": F.mse_loss, "l1": F.l1_loss}

    def __init__(self, kind: str = "mse", scale: torch.Tensor | None = None):
        if kind not in self.FUNCTIONS:
            raise ValueError(f"regression_loss has to be one of {', '.join(self.FUNCTIONS)}, got {kind!r}")
        self.function = self.FUNCTIONS[kind]
        self.scale = scale

    def total(self, logits: torch.Tensor, labels: torch.Tensor, is_training: bool) -> torch.Tensor:
        errors = logits - labels.to(logits.dtype)
        if is_training and self.scale is not None:
            errors = errors / self.scale.to(logits.device)
        return self.function(errors, torch.zeros_like(errors), reduction="sum") / logits.shape[-1]
