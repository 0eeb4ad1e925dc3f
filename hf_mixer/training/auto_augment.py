# SPDX-License-Identifier: Apache-2.0
"""RandAugment, TrivialAugment and colour jitter on a batch, drawn anew for every sample."""

import numpy as np
import torch
from kornia import enhance

from .mixing import to_device


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images in [0, 1]."""
    return images.float() / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1] as uint8, rounded."""
    return (images * 255).round_().to(torch.uint8)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch every channel to [0, 1], as Pillow's `ImageOps.autocontrast`; a channel of one value stays."""
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low), images)


def jitter_colors(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """
    Scale the brightness, then the contrast, then the saturation of uint8 images of 1 or 3 channels, each time clamped to
    the range of the pixels, by `factors` of shape `(3, batch_size)`; 1 leaves an image as it is.
    """
    brightness, contrast, saturation = factors
    pixels = enhance.adjust_brightness_accumulative(to_float(images), brightness)
    pixels = enhance.adjust_contrast_with_mean_subtraction(pixels, contrast)
    return to_uint8(enhance.adjust_saturation_with_gray_subtraction(pixels, saturation))


GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

# What images in [0, 1] become under magnitudes of shape `(batch_size,)`
PHOTOMETRIC = {
    "brightness": lambda images, magnitudes: enhance.adjust_brightness_accumulative(images, 1 + magnitudes),
    "color": lambda images, magnitudes: enhance.adjust_saturation_with_gray_subtraction(images, 1 + magnitudes),
    "contrast": lambda images, magnitudes: enhance.adjust_contrast_with_mean_subtraction(images, 1 + magnitudes),
    "sharpness": lambda images, magnitudes: enhance.sharpness(images, 1 + magnitudes),
    "posterize": lambda images, magnitudes: enhance.posterize(images, magnitudes.int()),
    "solarize": lambda images, magnitudes: enhance.solarize(images, magnitudes / 255),
    "autocontrast": lambda images, magnitudes: autocontrast(images),
    "equalize": lambda images, magnitudes: enhance.equalize(images),
}

OPERATIONS = ("identity", *GEOMETRIC, *PHOTOMETRIC)
SIGNED = np.isin(OPERATIONS, [*GEOMETRIC, "brightness", "color", "contrast", "sharpness"])
NUM_MAGNITUDES = 31
POLICIES = ("randaugment", "trivialaugment")


def affine_matrices(operations: np.ndarray, magnitudes: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Return matrices of shape `(*operations.shape, 2, 3)`, in float32, that lead from a point (x, y) of the transformed
    image to the one of the original, in pixels from the top left corner. Shears keep that corner, rotations the center.

    Args:
        operations (`np.ndarray` of `int`):
            Indices into `OPERATIONS`; all but the geometric ones give the identity.
        magnitudes (`np.ndarray` of the same shape):
            Slopes, pixels and degrees.
    """
    shear_x, shear_y, translate_x, translate_y, angle = (
        np.where(operations == OPERATIONS.index(name), magnitudes, 0) for name in GEOMETRIC
    )
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = width / 2, height / 2
    first = [cosine, shear_x - sine, x - cosine * x + sine * y - translate_x]
    second = [shear_y + sine, cosine, y - sine * x - cosine * y - translate_y]
    return np.moveaxis(np.array([first, second]), (0, 1), (-2, -1)).astype(np.float32)


def transform_affine(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """
    Move the pixels of images of shape `(batch_size, num_channels, height, width)` by the `affine_matrices`, of shape
    `(batch_size, 2, 3)`. Every pixel is a copy of the nearest one in the original, or black outside of it.
    """
    height, width = images.shape[-2:]
    y, x = (torch.arange(size, device=images.device) + 0.5 for size in (height, width))
    # Each of shape (2, batch_size, 1, 1). Written out: a matrix product may run in a lower precision on a GPU
    of_x, of_y, offset = matrices[..., None, None].permute(2, 1, 0, 3, 4)
    column, row = (of_x * x + of_y * y[:, None] + offset).floor_().long()
    is_outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    pixel = (row * width + column).masked_fill_(is_outside, 0).flatten(1)[:, None]
    moved = images.flatten(2).gather(2, pixel.expand(-1, images.shape[1], -1)).view(images.shape)
    return moved.masked_fill_(is_outside[:, None], 0)


class AutoAugment:
    """
    [RandAugment](https://huggingface.co/papers/1909.13719) and
    [TrivialAugment](https://huggingface.co/papers/2103.10158) with the operations and magnitudes of torchvision's
    `RandAugment` and `TrivialAugmentWide`. Every sample has its own operations, drawn uniformly, and signs.

    The photometric operations are those of Pillow, to within one level of 256. The geometric ones copy the nearest
    pixel and fill with black, as torchvision's do by default.

    Args:
        policy (`str`):
            `"randaugment"`: `num_ops` operations in a row, all of one magnitude. `"trivialaugment"`: one operation of
            a uniform magnitude, from a wider range.
        num_ops (`int`, *optional*, defaults to 2):
            Number of operations of RandAugment.
        magnitude (`int`, *optional*, defaults to 9):
            Magnitude of RandAugment, from 0 to 30. On the scale of timm and of TensorFlow, 30 is called 10.

    Raises:
        `ValueError`: an argument is out of range.
    """

    def __init__(self, policy: str, num_ops: int = 2, magnitude: int = 9):
        if policy not in POLICIES:
            raise ValueError(
                f"`auto_augment` has to be one of {', '.join(map(repr, POLICIES))} or None, got {policy!r}"
            )
        if num_ops < 1:
            raise ValueError(f"`randaugment_num_ops` has to be at least 1, got {num_ops}")
        if magnitude not in range(NUM_MAGNITUDES):
            raise ValueError(
                f"`randaugment_magnitude` has to be an integer from 0 to {NUM_MAGNITUDES - 1}, got {magnitude}"
            )
        self.policy = policy
        self.num_ops = num_ops if policy == "randaugment" else 1
        self.magnitude = magnitude

    def magnitude_table(self, height: int, width: int) -> np.ndarray:
        """
        Return the magnitudes of the operations, of shape `(len(OPERATIONS), NUM_MAGNITUDES)` and without sign. Shears
        are slopes, translations whole pixels and rotations degrees; brightness, color, contrast and sharpness are
        distances of the factor from 1; posterize keeps so many bits, and solarize inverts from this level on.
        """
        share = np.linspace(0, 1, NUM_MAGNITUDES)
        if self.policy == "trivialaugment":
            shear, translations, rotation, factor, bits = 0.99, (32.0, 32.0), 135, 0.99, 6
        else:
            shear, translations, rotation, factor, bits = 0.3, (150 / 331 * width, 150 / 331 * height), 30, 0.9, 4
        table: dict[str, np.ndarray] = dict.fromkeys(OPERATIONS, np.zeros(NUM_MAGNITUDES))
        table |= dict.fromkeys(("shear_x", "shear_y"), shear * share)
        table |= {name: np.trunc(size * share) for name, size in zip(("translate_x", "translate_y"), translations)}
        table |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor * share)
        table |= {"rotate": rotation * share, "posterize": 8 - np.round(bits * share)}
        table["solarize"] = 255 - 8.5 * np.arange(NUM_MAGNITUDES)
        return np.stack([table[name] for name in OPERATIONS])

    def sample(
        self, batch_size: int, height: int, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw the operations of a batch.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: indices into `OPERATIONS` and magnitudes, with sign where an operation has
            two directions, both of shape `(num_ops, batch_size)`, in the order in which they apply.
        """
        shape = (self.num_ops, batch_size)
        operations = rng.integers(len(OPERATIONS), size=shape)
        is_random = self.policy == "trivialaugment"
        bins = rng.integers(NUM_MAGNITUDES, size=shape) if is_random else np.full(shape, self.magnitude)
        magnitudes = self.magnitude_table(height, width)[operations, bins]
        is_negative = SIGNED[operations] & (rng.random(shape) < 0.5)
        return operations, np.where(is_negative, -magnitudes, magnitudes)

    def __call__(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Transform uint8 images of shape `(batch_size, num_channels, height, width)` with 1 or 3 channels."""
        batch_size, _, height, width = images.shape
        operations, magnitudes = self.sample(batch_size, height, width, rng)

        # Before each step the samples are sorted by its operation, so that those of one operation are a slice, whose ends
        # the CPU knows
        order = np.argsort(operations, axis=1, kind="stable")
        operations = np.take_along_axis(operations, order, axis=1)
        magnitudes = np.take_along_axis(magnitudes, order, axis=1)
        # Where each sample lies in the order of each step
        place = np.argsort(order, axis=1)
        moves = [order[0]]
        for step in range(1, self.num_ops):
            moves.append(place[step - 1][order[step]])
        moves.append(place[-1])

        *moves_on_device, move_back = to_device(np.stack(moves), images.device)
        matrices = to_device(affine_matrices(operations, magnitudes, height, width), images.device)
        magnitudes_on_device = to_device(magnitudes.astype(np.float32), images.device)
        for step, move in enumerate(moves_on_device):
            ends = np.searchsorted(operations[step], np.arange(len(OPERATIONS) + 1)).tolist()
            images = self.apply(images[move], ends, matrices[step], magnitudes_on_device[step])
        return images[move_back]

    def apply(
        self, images: torch.Tensor, ends: list[int], matrices: torch.Tensor, magnitudes: torch.Tensor
    ) -> torch.Tensor:
        """Transform images that are sorted by their operation; those of operation `i` end before `ends[i + 1]`."""
        slices = {name: slice(ends[index], ends[index + 1]) for index, name in enumerate(OPERATIONS)}
        moved = slice(slices[GEOMETRIC[0]].start, slices[GEOMETRIC[-1]].stop)
        if moved.start < moved.stop:
            images[moved] = transform_affine(images[moved], matrices[moved])
        # They follow each other, so that they are converted at once: a GPU spends more time on starting than on computing
        recolored = slice(moved.stop, len(images))
        if recolored.start < recolored.stop:
            pixels = to_float(images[recolored])
            for name, operation in PHOTOMETRIC.items():
                part = slices[name]
                if part.start < part.stop:
                    shifted = slice(part.start - moved.stop, part.stop - moved.stop)
                    pixels[shifted] = operation(pixels[shifted], magnitudes[part])
            images[recolored] = to_uint8(pixels)
        return images
