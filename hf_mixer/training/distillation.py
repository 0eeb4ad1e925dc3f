# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: labels that a trained model has had a say in."""

import numpy as np
import torch
from torch.nn import functional as F

from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_mixer import MixerConfig
from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of
from .mixing import to_device


def check_teacher(teacher: PreTrainedConfig, student: MixerConfig) -> None:
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
            # Not all architectures tell
            "num_channels": getattr(config, "num_channels", student.num_channels),
        }
        for config in (teacher, student)
    )
    for index, (name, expected) in enumerate(zip(*names)):
        found[f"label {index}"], needed[f"label {index}"] = name, expected
    for name, value in needed.items():
        if found[name] != value:
            raise ValueError(
                f"the teacher's {name} is {found[name]!r}, and the model's {value!r}: take a teacher that was trained on the "
                "same labels, with images of the same kind"
            )


class PixelConversion:
    """
    Turns pixels as one image processor prepares them into those of another one: normalized otherwise, and resized to its
    images. What the first one has cropped stays away.

    Args:
        given, wanted:
            The two image processors.
    """

    def __init__(self, given, wanted):
        (mean, std), (its_mean, its_std) = (self.normalization(processor) for processor in (given, wanted))
        self.factor, self.offset = std / its_std, (mean - its_mean) / its_std
        self.size = self.image_size(wanted)

    @staticmethod
    def normalization(processor) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the standard deviation that a processor takes pixels from 0 to 255 to have, by channel."""
        settings = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        mean, std = (np.asarray(values, dtype=np.float64).reshape(-1, 1, 1) for values in settings)
        scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
        return mean * scale, std * scale

    @staticmethod
    def image_size(processor) -> tuple[int, int]:
        """Return the height and width of a processor's images; of those that keep their shape, the shortest edge twice."""
        size = dict(processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)
        if "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
        return size["height"], size["width"]

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Convert images of shape `(batch_size, num_channels, height, width)`."""
        if pixel_values.shape[-2:] != self.size:
            is_smaller = min(self.size) < min(pixel_values.shape[-2:])
            pixel_values = F.interpolate(pixel_values, self.size, mode="bilinear", antialias=is_smaller)
        if (self.factor != 1).any() or self.offset.any():
            factor, offset = (
                to_device(part.astype(np.float32), pixel_values.device) for part in (self.factor, self.offset)
            )
            pixel_values = pixel_values * factor + offset
        return pixel_values


class Distillation:
    """
    [Knowledge distillation](https://huggingface.co/papers/1503.02531) from a teacher that sees the same augmented images,
    as in [this study](https://huggingface.co/papers/2106.05237). The targets are the labels and the probabilities that the
    teacher gives, averaged. All that the loss does to targets, such as label smoothing and weights of classes, it does to
    this average.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A trained image classifier of any architecture. Its probabilities are a softmax or, with several labels for an
            image, sigmoids.
        student ([`~transformers.PreTrainedModel`]):
            The model that is trained.
        alpha (`float`):
            The weight of the teacher, in [0, 1]. The labels have the rest.
        conversion ([`PixelConversion`], *optional*):
            From the pixels of the student to those of the teacher. By default both see the same.

    Raises:
        `ValueError`: the two differ in their labels, their problem type or their images, or are for regression.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        alpha: float,
        conversion: PixelConversion | None = None,
    ):
        check_teacher(teacher.config, student.config)
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha, self.conversion = alpha, conversion
        self.is_multi_label = problem_type_of(student.config) == MULTI_LABEL

    @torch.no_grad()
    def soften(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images, as the student sees them.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`):
                Class indices, or a number for every label.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`: the targets, in float32.
        """
        if self.conversion is not None:
            pixel_values = self.conversion(pixel_values)
        logits = self.teacher(pixel_values=pixel_values).logits.float()
        probabilities = logits.sigmoid() if self.is_multi_label else logits.softmax(-1)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
        return torch.lerp(targets.float(), probabilities, self.alpha)
