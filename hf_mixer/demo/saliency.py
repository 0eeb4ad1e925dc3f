# SPDX-License-Identifier: Apache-2.0
"""
What a model looked at.

This file also travels alone, into the demo Space: it needs torch, NumPy and Pillow, and nothing of this package.
"""

import numpy as np
import torch
from PIL import Image


SUPPORTING, OPPOSING = (230, 97, 1), (94, 60, 153)  # orange and purple, which the colour-blind can tell apart
# Covered images per forward pass
BATCH_SIZE = 32
# The shorter side of the picture, in pixels
PICTURE_SIZE = 448


@torch.no_grad()
def occlusion_map(model, pixel_values: torch.Tensor, window: int) -> torch.Tensor:
    """
    Cover the image part by part, and see how much less likely its most likely label becomes, or by how much the value
    of a regression falls (Zeiler and Fergus, https://huggingface.co/papers/1311.2901).

    Args:
        model (`MixerForImageClassification`):
            The model, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`):
            One image, as the image processor returns it.
        window (`int`):
            Height and width of the covered part, in patches. A larger one needs fewer forward passes: one for each
            part.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`, one value per patch, on the CPU: by how much the log-probability of
        the label falls when the patch takes the mean color of the image. Positive where the image speaks for the label.
        Of a regression, by how much the first value falls, in its own unit.
    """
    pixel_values = pixel_values.to(model.device)
    rows, columns = model.config.grid
    patch_height, patch_width = pixel_values.shape[2] // rows, pixel_values.shape[3] // columns

    outputs = read_outputs(model, pixel_values)[0]
    index = 0 if is_regression(model.config) else outputs.argmax()
    mean_color = pixel_values.mean(dim=(2, 3), keepdim=True)
    corners = [(row, column) for row in range(0, rows, window) for column in range(0, columns, window)]
    saliency = torch.zeros(rows, columns)
    for start in range(0, len(corners), BATCH_SIZE):
        batch = corners[start : start + BATCH_SIZE]
        covered = pixel_values.repeat(len(batch), 1, 1, 1)
        for image, (row, column) in zip(covered, batch):
            top, left = row * patch_height, column * patch_width
            image[:, top : top + window * patch_height, left : left + window * patch_width] = mean_color[0]
        falls = outputs[index] - read_outputs(model, covered)[:, index]
        for (row, column), fall in zip(batch, falls.tolist()):
            saliency[row : row + window, column : column + window] = fall
    return saliency


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


def draw_saliency(
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    image_mean: list[float] | float,
    image_std: list[float] | float,
    weakest: float = 1e-4,
) -> Image.Image:
    """
    Draw an image as the model sees it: orange where it speaks for the label, or for a larger value, purple where it speaks
    against it.

    Args:
        pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`):
            The image, as the image processor returns it. Other than three channels are drawn as their mean.
        saliency (`torch.Tensor` of shape `(rows, columns)`):
            One value per patch, as `occlusion_map` returns them.
        image_mean (`list[float]` or `float`), image_std (`list[float]` or `float`):
            How the image was normalized.
        weakest (`float`, *optional*, defaults to 1e-4):
            The strongest value gets the full color, unless it is smaller than this.

    Returns:
        `PIL.Image.Image`: in RGB.
    """
    image = pixel_values[0].float().cpu().numpy().transpose(1, 2, 0) * np.asarray(image_std) + np.asarray(image_mean)
    if image.shape[2] != 3:
        image = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    height, width = image.shape[:2]
    scale = PICTURE_SIZE / min(height, width)
    target = (round(width * scale), round(height * scale))
    # Small images keep their pixels visible
    resample = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    picture = Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).resize(target, resample)

    values = saliency.float().cpu().numpy()
    strength = np.abs(values) / max(np.abs(values).max(), weakest)
    color = np.where(values[..., None] > 0, SUPPORTING, OPPOSING).astype(np.uint8)
    layer = np.dstack([color, np.round(strength * 0.7 * 255).astype(np.uint8)])
    overlay = Image.fromarray(layer).resize(target, Image.Resampling.NEAREST)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")
