# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches on their device, drawn anew for every sample."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .auto_augment import AutoAugment, jitter_colors
from .mixing import MixupCutmix, box_masks, check_shares, to_device


# The defaults of timm for random erasing
ERASING_SCALE = (0.02, 1 / 3)
ERASING_RATIO = (0.3, 1 / 0.3)


def normalize_pixels(
    pixel_values: torch.Tensor,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    rescale_factor: float = 1 / 255,
) -> torch.Tensor:
    """
    Rescale and normalize a batch on its device, as an image processor does: `(pixels * rescale_factor - mean) / std`.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Images in uint8.
        mean (`float` or sequence of `float`), std (`float` or sequence of `float`):
            One value, or one for each channel: `image_mean` and `image_std` of the image processor.
        rescale_factor (`float`, *optional*, defaults to 1/255):
            What the pixels are multiplied with first.

    Returns:
        `torch.Tensor` of the same shape, in float32.

    Raises:
        `ValueError`: `mean` or `std` have neither one value nor one for each channel.
    """
    num_channels = pixel_values.shape[1]
    for name, value in (("mean", mean), ("std", std)):
        if np.size(value) not in (1, num_channels):
            raise ValueError(f"`{name}` needs one value, or one for each of {num_channels} channels, got {value}")
    center, spread = (np.asarray(value, dtype=np.float64).reshape(-1, 1, 1) for value in (mean, std))
    factor = to_device((rescale_factor / spread).astype(np.float32), pixel_values.device)
    offset = to_device((-center / spread).astype(np.float32), pixel_values.device)
    return pixel_values.to(torch.float32, copy=True).mul_(factor).add_(offset)


def sample_boxes(
    batch_size: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """
    Draw boxes in an image as torchvision and timm do: area uniform in `scale` as a share of the image, ratio of width
    to height log-uniform in `ratio`, and a uniform place. After ten attempts that do not fit, the box is empty.

    Returns:
        `np.ndarray` of shape `(batch_size, 4)`: top, left, bottom and right in pixels, the last two exclusive.
    """
    areas = height * width * rng.uniform(*scale, (batch_size, 10))
    ratios = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (batch_size, 10)))
    sizes = np.round(np.sqrt([areas / ratios, areas * ratios]))
    image_size = np.array([[height], [width]])
    fits = ((sizes >= 1) & (sizes <= image_size[:, :, None])).all(0)
    # The first attempt that fits
    sizes = sizes[:, np.arange(batch_size), np.argmax(fits, axis=1)] * np.any(fits, axis=1)
    start = np.floor(rng.random((2, batch_size)) * (image_size - sizes + 1))
    return np.concatenate([start, start + sizes]).T.astype(np.int64)


def resampling_matrices(start: torch.Tensor, end: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """
    Return matrices of shape `(batch_size, new, old)` that resize the part from `start` to `end` (both of shape
    `(batch_size,)`, in pixels, `end` exclusive) of an axis of `old` pixels to `new` pixels: bilinear interpolation with
    antialiasing, as in Pillow. Every row sums to 1.
    """
    start, end = start[:, None, None], end[:, None, None]
    step = (end - start).float() / new
    source = start + (torch.arange(new, device=start.device)[:, None] + 0.5) * step
    pixel = torch.arange(old, device=start.device)
    weights = (1 - (pixel + 0.5 - source).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel >= start) & (pixel < end))
    return weights / weights.sum(-1, keepdim=True)


def crop_windows(
    pixel_values: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """
    Crop a window of `height` x `width` pixels out of each image, `(batch_size, num_channels, old_height, old_width)`, from
    its row of `tops` and its column of `lefts` on, both of shape `(batch_size,)`.
    """
    batch_size, num_channels, old_height, old_width = pixel_values.shape
    device = pixel_values.device
    planes = torch.arange(batch_size * num_channels, device=device).view(batch_size, num_channels, 1) * old_height
    rows = planes + (tops[:, None] + torch.arange(height, device=device))[:, None]
    starts = rows * old_width + lefts[:, None, None]
    # Each row of a window lies in one piece: a CPU copies pieces ten times as fast as it indexes pixels
    pieces = pixel_values.flatten().unfold(0, width, 1)
    return pieces.index_select(0, starts.flatten()).view(batch_size, num_channels, height, width)


class BatchAugmentation:
    """
    Augments batches of images on their device, each sample at random, and normalizes them: a random crop (with padding,
    or resized), a horizontal flip, RandAugment or TrivialAugment, colour jitter, random erasing, then mixup or CutMix.

    All randomness is drawn on the CPU, from a seed that every batch draws from `generator`. Hence its seed fixes
    everything on every device, and nothing waits for the device.

    Args:
        image_size (`int` or `tuple[int, int]`):
            Height and width of the augmented images, in pixels.
        mean, std, rescale_factor:
            See [`normalize_pixels`].
        num_labels (`int`, *optional*):
            Number of labels. Needed by mixup and CutMix only.
        crop_padding (`int`, *optional*, defaults to 0):
            Black pixels to put around the images before a random crop of `image_size`.
        random_resized_crop (`bool`, *optional*, defaults to `False`):
            Whether to crop a box of random size and shape instead, and resize it to `image_size` (bilinear with
            antialiasing, as Pillow does).
        scale (`tuple[float, float]`, *optional*, defaults to `(0.08, 1.0)`):
            Smallest and largest area of that box as a share of the image.
        ratio (`tuple[float, float]`, *optional*, defaults to `(3 / 4, 4 / 3)`):
            Smallest and largest ratio of its width to its height.
        horizontal_flip (`float`, *optional*, defaults to 0.0):
            Probability of a horizontal flip.
        auto_augment (`str`, *optional*):
            `"randaugment"` or `"trivialaugment"`, as in torchvision: see [`AutoAugment`].
        randaugment_num_ops (`int`, *optional*, defaults to 2), randaugment_magnitude (`int`, *optional*, defaults to 9):
            `num_ops` and `magnitude` of [`AutoAugment`].
        color_jitter (`float`, *optional*, defaults to 0.0):
            Brightness, contrast and saturation are scaled by factors uniform in `[1 - color_jitter, 1 + color_jitter]`.
        random_erasing (`float`, *optional*, defaults to 0.0):
            Probability that a box of a [random size and shape](https://huggingface.co/papers/1708.04896) is set to the
            mean pixel, which is 0 after normalization.
        mixup_alpha, cutmix_alpha, mixup_prob, mixup_switch_prob (`float`, *optional*), problem_type (`str`, *optional*):
            See [`MixupCutmix`].
        generator (`torch.Generator`, *optional*):
            A generator on the CPU. Defaults to the global one. The processes of a distributed run need different seeds,
            or their batches go through the same augmentation.

    Raises:
        `ValueError`: an argument is out of range, or missing.

    Example:

    ```python
    >>> augmentation = BatchAugmentation(32, 0.5, 0.5, num_labels=10, crop_padding=4, horizontal_flip=0.5, mixup_alpha=0.8)
    >>> batch = augmentation({"pixel_values": images, "labels": labels})  # uint8 images, integer labels
    >>> batch["pixel_values"].dtype, batch["labels"].shape
    (torch.float32, torch.Size([128, 10]))
    ```"""

    def __init__(
        self,
        image_size: int | tuple[int, int],
        mean: float | Sequence[float],
        std: float | Sequence[float],
        rescale_factor: float = 1 / 255,
        num_labels: int | None = None,
        crop_padding: int = 0,
        random_resized_crop: bool = False,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        auto_augment: str | None = None,
        randaugment_num_ops: int = 2,
        randaugment_magnitude: int = 9,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        problem_type: str = "single_label_classification",
        generator: torch.Generator | None = None,
    ):
        self.height, self.width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(self.height, self.width) < 1:
            raise ValueError(f"`image_size` has to be a positive integer or a pair of them, got {image_size}")
        if crop_padding < 0:
            raise ValueError(f"`crop_padding` has to be at least 0, got {crop_padding}")
        if random_resized_crop and crop_padding:
            raise ValueError(
                f"`random_resized_crop` takes no `crop_padding`, got {crop_padding}: leave one of them out"
            )
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` has to be a pair of rising numbers in (0, 1], got {scale}")
        if not 0 < ratio[0] <= ratio[1] < float("inf"):
            raise ValueError(f"`ratio` has to be a pair of rising positive numbers, got {ratio}")
        check_shares(horizontal_flip=horizontal_flip, random_erasing=random_erasing, color_jitter=color_jitter)
        self.mean, self.std, self.rescale_factor = mean, std, rescale_factor
        self.crop_padding = crop_padding
        self.random_resized_crop, self.scale, self.ratio = random_resized_crop, scale, ratio
        self.horizontal_flip = horizontal_flip
        self.auto_augment = None
        if auto_augment is not None:
            self.auto_augment = AutoAugment(auto_augment, randaugment_num_ops, randaugment_magnitude)
        self.color_jitter = color_jitter
        self.random_erasing = random_erasing
        self.mixing = None
        if mixup_alpha or cutmix_alpha:
            if num_labels is None:
                raise ValueError("mixup and CutMix need `num_labels`, got None")
            self.mixing = MixupCutmix(
                num_labels, mixup_alpha, cutmix_alpha, mixup_prob, mixup_switch_prob, problem_type
            )
        self.generator = generator

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict:
        """
        Augment a batch.

        Args:
            batch (`dict`):
                `pixel_values`, a uint8 tensor of shape `(batch_size, num_channels, height, width)`, and `labels`, an
                integer tensor of shape `(batch_size,)` (with another `problem_type` floats of shape `(batch_size,
                num_labels)`), which only mixup and CutMix need. All else is handed through.

        Returns:
            `dict`: the batch with normalized `pixel_values` in float32 and, with mixup or CutMix, `labels` of shape
            `(batch_size, num_labels)` in float32.

        Raises:
            `ValueError`: `pixel_values` are not uint8 images, are too small for the crop, or `labels` are missing.
        """
        pixel_values, batch_size = batch["pixel_values"], len(batch["pixel_values"])
        if pixel_values.dtype != torch.uint8 or pixel_values.ndim != 4:
            raise ValueError(
                "`pixel_values` have to be a uint8 tensor of shape (batch_size, num_channels, height, width), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}"
            )
        num_channels = pixel_values.shape[1]
        if (self.auto_augment or self.color_jitter) and num_channels not in (1, 3):
            raise ValueError(
                f"`auto_augment` and `color_jitter` need images of 1 or 3 channels, got {num_channels}: leave them out"
            )
        if self.mixing and batch.get("labels") is None:
            raise ValueError(f"mixup and CutMix need `labels` in the batch, got {', '.join(batch)}")
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=self.generator, device="cpu")))

        # No kernel of the augmentation gains from a lower precision, and the resampling would lose
        with torch.autocast(pixel_values.device.type, enabled=False):
            pixel_values = self._crop_and_flip(pixel_values, rng)
            if self.auto_augment:
                pixel_values = self.auto_augment(pixel_values, rng)
            if self.color_jitter:
                low, high = 1 - self.color_jitter, 1 + self.color_jitter
                factors = rng.uniform(low, high, (3, batch_size)).astype(np.float32)
                pixel_values = jitter_colors(pixel_values, to_device(factors, pixel_values.device))
            pixel_values = normalize_pixels(pixel_values, self.mean, self.std, self.rescale_factor)
            if self.random_erasing:
                boxes = sample_boxes(batch_size, self.height, self.width, ERASING_SCALE, ERASING_RATIO, rng)
                boxes[rng.random(batch_size) >= self.random_erasing] = 0
                rows, columns = box_masks(to_device(boxes, pixel_values.device), self.height, self.width)
                pixel_values.masked_fill_(rows & columns, 0.0)
            batch = {**batch, "pixel_values": pixel_values}
            if self.mixing:
                batch["pixel_values"], batch["labels"] = self.mixing(pixel_values, batch["labels"], rng)
        return batch

    def _crop_and_flip(self, pixel_values: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        batch_size, _, height, width = pixel_values.shape
        if self.random_resized_crop:
            boxes = sample_boxes(batch_size, height, width, self.scale, self.ratio, rng)
            # Where no attempt fits: the largest centered box whose ratio is in the bounds
            box_height = min(height, max(1, round(width / self.ratio[0])))
            box_width = min(width, max(1, round(height * self.ratio[1])))
            top, left = (height - box_height) // 2, (width - box_width) // 2
            boxes[boxes[:, 0] == boxes[:, 2]] = (top, left, top + box_height, left + box_width)
            tops, lefts, bottoms, rights = to_device(boxes, pixel_values.device).unbind(1)
            rows = resampling_matrices(tops, bottoms, height, self.height)[:, None]
            columns = resampling_matrices(lefts, rights, width, self.width)[:, None]
            resized = rows @ pixel_values.float() @ columns.transpose(-1, -2)
            pixel_values = resized.round_().clamp_(0, 255).to(torch.uint8)
        elif self.crop_padding or (height, width) != (self.height, self.width):
            pad = self.crop_padding
            num_tops, num_lefts = height + 2 * pad - self.height + 1, width + 2 * pad - self.width + 1
            if min(num_tops, num_lefts) < 1:
                raise ValueError(
                    f"images of {height} x {width} pixels, padded by {pad}, are too small for a crop of "
                    f"{self.height} x {self.width}: resize them before, or use `random_resized_crop`"
                )
            tops, lefts = to_device(rng.integers([[num_tops], [num_lefts]], size=(2, batch_size)), pixel_values.device)
            pixel_values = crop_windows(
                nn.functional.pad(pixel_values, (pad,) * 4), tops, lefts, self.height, self.width
            )
        if self.horizontal_flip:
            is_flipped = rng.random(batch_size) < self.horizontal_flip
            index = to_device(np.arange(batch_size) + batch_size * is_flipped, pixel_values.device)
            pixel_values = torch.cat([pixel_values, pixel_values.flip(-1)]).index_select(0, index)
        return pixel_values
