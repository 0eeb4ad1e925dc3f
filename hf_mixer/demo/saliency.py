# SPDX-License-Identifier: Apache-2.0
"""
What a model looked at.

This file also travels alone, into the demo Space: it needs torch, NumPy and Pillow, and nothing of this package.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image


SUPPORTING, OPPOSING = (230, 97, 1), (94, 60, 153)  # orange and purple, which the colour-blind can tell apart
# Parts of the image along its longer side. With more, each of them matters too little to stand out.
MAX_PARTS = 8
# Multiply-adds for one map. Two cores do as many in five to fifteen seconds.
CPU_BUDGET, ACCELERATOR_BUDGET = 320e9, 16e12
# Multiply-adds and covered images per forward pass, so that a map that nobody wants any more ends soon
BATCH_BUDGET, MAX_BATCH_SIZE = 32e9, 32
# The shorter side of the picture, in pixels
PICTURE_SIZE = 448
# Of the strongest color on the map
MAX_OPACITY = 0.8

# Top, left, bottom and right of a part of the image, in pixels
Window = tuple[int, int, int, int]


def count_operations(config) -> float:
    """Return the multiply-adds of one forward pass for one image, those of the blocks."""
    block = 2 * config.num_patches * config.hidden_size * (config.token_mlp_dim + config.channel_mlp_dim)
    return config.num_hidden_layers * block


def choose_stride(config, height: int, width: int, budget: float = CPU_BUDGET) -> int:
    """
    Return how many pixels lie between the parts that are covered one after the other: few where the model is small. There
    are at least 2 parts along the longer side, so that a map of a huge model takes more than `budget` multiply-adds.
    """
    longer = max(height, width)
    for parts in range(MAX_PARTS, 2, -1):
        stride = math.ceil(longer / parts)
        if count_operations(config) * len(find_windows(height, width, 2 * stride, stride)) <= budget:
            return stride
    return math.ceil(longer / 2)


def find_windows(height: int, width: int, window: int, stride: int) -> list[Window]:
    """
    Return the squares of `window` pixels that cover an image, every `stride` pixels, cut off at its borders. `window` is a
    multiple of `stride`; every pixel lies in `(window / stride) ** 2` of them.
    """
    return [
        (max(top, 0), max(left, 0), min(top + window, height), min(left + window, width))
        for top in range(stride - window, height, stride)
        for left in range(stride - window, width, stride)
    ]


@torch.no_grad()
def measure_falls(model, pixel_values: torch.Tensor, windows: Sequence[Window]) -> Iterator[torch.Tensor]:
    """
    Cover an image part by part, and see how much less likely every label becomes, or by how much the values of a regression
    fall (Zeiler and Fergus, https://huggingface.co/papers/1311.2901).

    Args:
        model (`MixerForImageClassification`):
            The model, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`):
            One image, as the image processor returns it.
        windows (`Sequence[tuple[int, int, int, int]]`):
            The parts that take the mean color of the image, as `find_windows` returns them.

    Yields:
        `torch.Tensor` of shape `(batch_size, num_labels)`, batch after batch, on the CPU: by how much the log-probability of
        each label falls when the part is covered. Of a regression, by how much each value falls, in its own unit.
    """
    pixel_values = pixel_values.to(model.device)
    outputs = read_outputs(model, pixel_values)
    mean_color = pixel_values.mean(dim=(2, 3), keepdim=True)
    batch_size = max(1, min(MAX_BATCH_SIZE, int(BATCH_BUDGET / count_operations(model.config))))
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        covered = pixel_values.repeat(len(batch), 1, 1, 1)
        for image, (top, left, bottom, right) in zip(covered, batch):
            image[:, top:bottom, left:right] = mean_color[0]
        yield (outputs - read_outputs(model, covered)).cpu()


def spread_falls(falls: torch.Tensor, windows: Sequence[Window], height: int, width: int) -> torch.Tensor:
    """
    Return the map of one label, of shape `(height, width)`: for every pixel the mean of `falls`, of shape `(num_windows,)`,
    over the windows that it lies in, those that it is in the middle of first. Positive where the image speaks for the label.
    """
    total, weights = torch.zeros(height, width), torch.zeros(height, width)
    for fall, (top, left, bottom, right) in zip(falls, windows):
        weight = distance_to_border(bottom - top)[:, None] * distance_to_border(right - left)
        total[top:bottom, left:right] += fall * weight
        weights[top:bottom, left:right] += weight
    return total / weights


def distance_to_border(length: int) -> torch.Tensor:
    """Return, of shape `(length,)`, how far the center of each pixel in a row is from the nearer end of the row."""
    centers = torch.arange(length) + 0.5
    return torch.minimum(centers, length - centers)


def occlusion_map(model, pixel_values: torch.Tensor, window: int, stride: int, index: int) -> torch.Tensor:
    """
    Return what the model looked at, of shape `(height, width)`; see `measure_falls` and `spread_falls`.

    Args:
        model (`MixerForImageClassification`), pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`):
            The model, in evaluation mode, and one image, as the image processor returns it.
        window (`int`), stride (`int`):
            The side of the covered square and how far it moves, in pixels. `window` is a multiple of `stride`.
        index (`int`):
            The label, or the value of a regression, that the map explains.
    """
    height, width = pixel_values.shape[2:]
    windows = find_windows(height, width, window, stride)
    falls = torch.cat(list(measure_falls(model, pixel_values, windows)))
    return spread_falls(falls[:, index], windows, height, width)


def find_first(config, outputs: torch.Tensor) -> int:
    """Return the index of the most likely label, or of the first value of a regression, in outputs of one image."""
    return 0 if is_regression(config) else int(outputs.argmax())


def is_regression(config) -> bool:
    """Whether the outputs are values. Without `problem_type`, transformers takes a single one for that."""
    return (config.problem_type or ("regression" if config.num_labels == 1 else None)) == "regression"


def read_outputs(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Return the logarithm of the probability of every label, or the values of a regression, of shape
    `(batch_size, num_labels)`.
    """
    logits = model(pixel_values).logits.float()
    if is_regression(model.config):
        return logits
    if model.config.problem_type == "multi_label_classification":
        return torch.nn.functional.logsigmoid(logits)
    return logits.log_softmax(dim=-1)


def draw_image(pixel_values: torch.Tensor, processor) -> Image.Image:
    """
    Draw an image as the model sees it.

    Args:
        pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`):
            The image, as the image processor returns it. Other than three channels are drawn as their mean.
        processor (`MixerImageProcessor` or `MixerImageProcessorPil`):
            The image processor, which says how the image was normalized.

    Returns:
        `PIL.Image.Image`: in RGB, with a shorter side of `PICTURE_SIZE` pixels.
    """
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    image = pixel_values[0].float().cpu().numpy().transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    if image.shape[2] != 3:
        image = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    height, width = image.shape[:2]
    scale = PICTURE_SIZE / min(height, width)
    target = (round(width * scale), round(height * scale))
    # Small images keep their pixels visible
    resample = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    return Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).resize(target, resample)


def draw_saliency(picture: Image.Image, saliency: torch.Tensor, strongest: float) -> Image.Image:
    """
    Draw a map over a pale gray copy of an image: orange where the image speaks for the label, or for a larger value, purple
    where it speaks against it.

    Args:
        picture (`PIL.Image.Image`):
            The image, as `draw_image` draws it.
        saliency (`torch.Tensor` of shape `(height, width)`):
            One value per pixel of the model's input, as `occlusion_map` returns them.
        strongest (`float`):
            The value, or its negative, that gets the full color.

    Returns:
        `PIL.Image.Image`: in RGB, as large as `picture`.
    """
    # Colors would drown in a dark picture
    gray = picture.convert("L").point(lambda level: 90 + 0.6 * level).convert("RGB")
    values = Image.fromarray(saliency.float().cpu().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(values) / strongest, -1, 1)[..., None]
    color = np.where(strength > 0, SUPPORTING, OPPOSING)
    mixed = np.asarray(gray) * (1 - MAX_OPACITY * np.abs(strength)) + color * MAX_OPACITY * np.abs(strength)
    return Image.fromarray(np.round(mixed).astype(np.uint8))
