# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: labels that a trained model has had a say in."""

import torch
from torch.nn import functional as F

from transformers import PreTrainedModel

from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of


class Distillation:
    """
    [Knowledge distillation](https://huggingface.co/papers/1503.02531) from a teacher that sees the same augmented images,
    as in [this study](https://huggingface.co/papers/2106.05237). The targets are the labels and the probabilities that the
    teacher gives, averaged: for cross-entropies that is the average of the losses.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A trained model with the labels of the model that is trained.
        alpha (`float`):
            The weight of the teacher, in [0, 1]. The labels have the rest.

    Raises:
        `ValueError`: the teacher is a model for regression.
    """

    def __init__(self, teacher: PreTrainedModel, alpha: float):
        problem_type = problem_type_of(teacher.config)
        if problem_type == REGRESSION:
            raise ValueError("a teacher has to give probabilities, and this one estimates numbers (regression)")
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha = alpha
        self.is_multi_label = problem_type == MULTI_LABEL

    @torch.no_grad()
    def soften(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images, as the model sees them.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`):
                Class indices, or a number for every label.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`: the targets, in float32.
        """
        logits = self.teacher(pixel_values=pixel_values).logits.float()
        probabilities = logits.sigmoid() if self.is_multi_label else logits.softmax(-1)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
        return torch.lerp(targets.float(), probabilities, self.alpha)
