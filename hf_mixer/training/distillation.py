# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: labels that a trained model has had a say in."""

import torch
from torch.nn import functional as F

from transformers import PreTrainedModel

from ..configuration_mixer import MixerConfig, to_pair
from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of


def check_teacher(teacher: MixerConfig, student: MixerConfig) -> None:
    """
    Refuse a teacher whose answers are not about the student's labels and images.

    Raises:
        `ValueError`: the message names what differs.
    """
    if problem_type_of(student) == REGRESSION:
        raise ValueError("a teacher is for classification, and the model estimates numbers (regression): leave it out")
    names = [[config.id2label[index] for index in range(config.num_labels)] for config in (teacher, student)]
    found, needed = (
        {
            "problem_type": problem_type_of(config),
            "num_labels": config.num_labels,
            "num_channels": config.num_channels,
            "image_size": to_pair(config.image_size),
        }
        for config in (teacher, student)
    )
    for index, (name, expected) in enumerate(zip(*names)):
        found[f"label {index}"], needed[f"label {index}"] = name, expected
    for name, value in needed.items():
        if found[name] != value:
            raise ValueError(
                f"the teacher's {name} is {found[name]!r}, and the model's {value!r}: take a teacher that was trained on the "
                "same labels, with images of the same kind and size"
            )


class Distillation:
    """
    [Knowledge distillation](https://huggingface.co/papers/1503.02531) from a teacher that sees the same augmented images,
    as in [this study](https://huggingface.co/papers/2106.05237). The targets are the labels and the probabilities that the
    teacher gives, averaged. All that the loss does to targets, such as label smoothing and weights of classes, it does to
    this average.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A trained model. Its probabilities are a softmax or, with several labels for an image, sigmoids.
        student ([`~transformers.PreTrainedModel`]):
            The model that is trained.
        alpha (`float`):
            The weight of the teacher, in [0, 1]. The labels have the rest.

    Raises:
        `ValueError`: the two differ in their labels, their problem type or their images, or are for regression.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, alpha: float):
        check_teacher(teacher.config, student.config)
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha = alpha
        self.is_multi_label = problem_type_of(student.config) == MULTI_LABEL

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
