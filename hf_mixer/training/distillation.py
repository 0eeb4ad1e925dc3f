# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: labels that a trained model has had a say in."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_mixer import MixerConfig, to_pair
from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of
from .mixing import to_device


# Images of one color show what a processor does to colors, wherever it moves them to: black, white, and one that is neither
# grey nor the same in another order
NUM_COLORS, DARK, BRIGHT = 3, 40, 200


def label_names(config: PreTrainedConfig) -> list[str | None]:
    return [config.id2label.get(index) for index in range(config.num_labels)]


def check_teacher(teacher: PreTrainedConfig, student: MixerConfig) -> None:
    """
    Refuse a teacher whose answers are not about the student's labels. Their order does not matter.

    Raises:
        `ValueError`: the message names what differs.
    """
    if problem_type_of(student) == REGRESSION:
        raise ValueError("a teacher is for classification, and the model estimates numbers (regression): leave it out")
    found, needed = ((problem_type_of(config), config.num_labels) for config in (teacher, student))
    for what, value, expected in zip(("problem_type", "num_labels"), found, needed):
        if value != expected:
            raise ValueError(
                f"the teacher's {what} is {value!r}, and the model's {expected!r}: take a teacher that was trained on the same "
                "labels"
            )
    names = label_names(teacher)
    for name in label_names(student):
        if name not in names:
            some = ", ".join(repr(each) for each in names[:5])
            raise ValueError(
                f"the teacher has no label {name!r} (it has {some}{', ...' * (len(names) > 5)}): take a teacher that was "
                "trained on the same labels, by the same names"
            )


def prepare_colors(processor, config: MixerConfig) -> np.ndarray:
    """
    Return what an image processor makes of uniform images, as large as those of a model: an array of shape `(3, num_channels,
    height, width)`.
    """
    (height, width), num_channels = to_pair(config.image_size), config.num_channels
    colors = np.linspace(DARK, BRIGHT, 3 if num_channels == 1 else num_channels).round()
    colors = np.stack([np.zeros_like(colors), np.full_like(colors, 255), colors]).astype(np.uint8)
    images: list = [np.tile(color, (height, width, 1)) for color in colors]
    options = {"return_tensors": "pt"}
    if num_channels in (1, 3):
        images = [Image.fromarray(image) for image in images]
    else:
        options["input_data_format"] = "channels_last"
    prepared = [processor(image, **options)["pixel_values"][0] for image in images]
    return torch.stack(prepared).double().numpy()


class PixelConversion:
    """
    Turns pixels as one image processor prepares them into those of another one: normalized otherwise, and resized to its
    images. All that the first one has left of an image is resized, whether or not the second one would crop it.

    Both are tried on images of one color each, so that a processor of any kind will do.

    Args:
        given, wanted:
            The two image processors.
        config (`MixerConfig`):
            The model whose images are converted.

    Raises:
        `ValueError`: the second one does something else to colors than to normalize each channel, or makes no images of that
            many channels.
    """

    def __init__(self, given, wanted, config: MixerConfig):
        before, after = prepare_colors(given, config), self.try_on_colors(wanted, config)
        self.size = after.shape[-2:]
        (black, white, color), (its_black, its_white, its_color) = (
            colors.mean((2, 3), keepdims=True) for colors in (before, after)
        )
        self.factor = (its_white - its_black) / (white - black)
        self.offset = its_black - self.factor * black
        self.is_normalized_alike = np.allclose(self.factor, 1, atol=1e-5) and np.allclose(self.offset, 0, atol=1e-5)
        # A level is 1 / 255
        tolerance = np.abs(its_white - its_black).min() / 255
        is_uniform = np.abs(after - after.mean((2, 3), keepdims=True)).max() <= tolerance
        if not is_uniform or np.abs(self.factor * color + self.offset - its_color).max() > tolerance:
            raise ValueError(
                f"the teacher's image processor {type(wanted).__name__} does more to colors than to normalize each channel, "
                "such as to change the order of the channels: take another teacher"
            )

    @staticmethod
    def try_on_colors(processor, config: MixerConfig) -> np.ndarray:
        expected = (NUM_COLORS, config.num_channels)
        try:
            colors = prepare_colors(processor, config)
        except Exception as error:  # of any kind, as the processor may be anybody's
            raise ValueError(
                f"the teacher's image processor {type(processor).__name__} cannot prepare the images of the model "
                f"({type(error).__name__}: {first_line(error)}): take another teacher"
            ) from error
        if colors.ndim != 4 or colors.shape[:2] != expected or not np.isfinite(colors).all():
            raise ValueError(
                f"the teacher's image processor {type(processor).__name__} makes no images of {expected[1]} channel(s), or "
                f"pixels that are not finite (got {NUM_COLORS} of shape {colors.shape[1:]}): take another teacher"
            )
        return colors

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Convert images of shape `(batch_size, num_channels, height, width)`."""
        size = pixel_values.shape[-2:]
        if size != self.size:
            shrinks = any(new < old for new, old in zip(self.size, size))
            pixel_values = F.interpolate(pixel_values, self.size, mode="bilinear", antialias=shrinks)
        if not self.is_normalized_alike:
            factor, offset = (
                to_device(part.astype(np.float32), pixel_values.device) for part in (self.factor, self.offset)
            )
            pixel_values = pixel_values * factor + offset
        return pixel_values


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


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
        `ValueError`: the two differ in their labels, their problem type or their images, or are for regression; or the teacher
            does not take the images.
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
        names = label_names(teacher.config)
        self.places = [names.index(name) for name in label_names(student.config)]
        self.check_answers(student.config)
        self.is_multi_label = problem_type_of(student.config) == MULTI_LABEL

    def answer(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits in float32, in the order of the student's labels, for the student's images."""
        if self.conversion is not None:
            pixel_values = self.conversion(pixel_values)
        logits = self.teacher(pixel_values=pixel_values).logits.float()
        return logits if self.places == list(range(logits.shape[-1])) else logits[:, self.places]

    @torch.no_grad()
    def check_answers(self, student: MixerConfig) -> None:
        """Refuse a teacher that does not take the images, before the training begins."""
        shape = (1, student.num_channels, *to_pair(student.image_size))
        try:
            found = self.answer(torch.zeros(shape, device=self.teacher.device)).shape
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"the teacher ({type(self.teacher).__name__}) does not take the images that its image processor prepares "
                f"({first_line(error)}): take another one, or mend its preprocessor_config.json"
            ) from error
        if found != (1, student.num_labels):
            raise ValueError(
                f"the teacher ({type(self.teacher).__name__}) gives logits of shape {tuple(found)} for an image, and "
                f"{(1, student.num_labels)} are needed: take another one"
            )

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
        logits = self.answer(pixel_values)
        probabilities = logits.sigmoid() if self.is_multi_label else logits.softmax(-1)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
        return torch.lerp(targets.float(), probabilities, self.alpha)
