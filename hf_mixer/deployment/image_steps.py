# SPDX-License-Identifier: Apache-2.0
"""What an image processor does, step by step, for programs that do it themselves."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import PIL
from PIL.Image import Resampling

from ..image_processing_pil_mixer import MixerImageConversion


# The filters that programs know, by the names of the web page
FILTERS = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
# From this version on, some images are resized vertically first (https://github.com/python-pillow/Pillow/pull/9549), and pixels
# are rounded after each direction
IS_PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


@dataclass(frozen=True)
class ImageSteps:
    """
    What an image processor does to an image of three channels, in this order.

    Args:
        num_channels (`int`):
            1: compute the luminance. 3: keep the channels.
        size (`list[int]`, `int` or `None`):
            Resize to this height and width, or the shorter side to this length, or not at all.
        resample (`int`):
            The filter of the resize, one of `FILTERS`.
        vertical_first (`bool`):
            Whether an image that loses more than twice as many rows as columns is resized vertically and then horizontally, as
            Pillow does it from version 13 on. All others are resized horizontally first.
        crop_size (`list[int]` or `None`):
            Crop the center to this height and width, or not at all.
        scale, shift (`list[float]`):
            For each channel, what rescales and normalizes pixels between 0 and 255: `scale * pixels + shift`.
    """

    num_channels: int
    size: list[int] | int | None
    resample: int
    vertical_first: bool
    crop_size: list[int] | None
    scale: list[float]
    shift: list[float]


def read_steps(image_processor, num_channels: int, height: int, width: int) -> ImageSteps:
    """
    Read the settings of an image processor, for a model that takes images of this size. It resizes as the Pillow that is
    installed.

    Raises:
        `ValueError`: programs cannot do what one of them says, or its images do not fit the model.
    """
    if not isinstance(image_processor, MixerImageConversion):
        raise ValueError(
            f"Expected a MixerImageProcessor, whose steps are known, got a {type(image_processor).__name__}."
        )
    settings = image_processor.to_dict()
    channels, resample = settings["num_channels"], settings["resample"]
    if channels not in (1, 3):
        raise ValueError(f"Expected an image processor with `num_channels` 1 or 3, got {channels}.")
    if settings.get("do_pad"):
        raise ValueError("Expected an image processor with `do_pad=False`: programs do not pad images.")
    size = _read_size(settings["size"]) if settings["do_resize"] else None
    if size is not None and resample not in FILTERS:
        names = " or ".join(f"{value} ({name})" for value, name in FILTERS.items())
        raise ValueError(f"Expected an image processor with `resample` {names}, got {resample}.")
    crop_size = (
        [settings["crop_size"][side] for side in ("height", "width")] if settings.get("do_center_crop") else None
    )
    if channels != num_channels or (crop_size or size or [height, width]) != [height, width]:
        raise ValueError(
            f"Expected an image processor that makes images of {num_channels} channels and {height} x {width} pixels, as the "
            f"model takes them, got `num_channels={channels}`, `size={size}` and `crop_size={crop_size}`. Change its settings."
        )
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    mean, std = (
        _per_channel(settings[name] if settings["do_normalize"] else neutral, channels)
        for name, neutral in (("image_mean", 0.0), ("image_std", 1.0))
    )
    return ImageSteps(
        channels, size, resample, IS_PILLOW_13, crop_size, scale=(factor / std).tolist(), shift=(-mean / std).tolist()
    )


def _read_size(size: dict[str, int]) -> list[int] | int:
    """Return a fixed height and width, or the length of the shorter side."""
    if size.keys() == {"height", "width"}:
        return [size["height"], size["width"]]
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    raise ValueError(
        f"Expected an image processor whose sizes give `height` and `width`, or `shortest_edge` alone, got {size}."
    )


def _per_channel(values: float | Iterable[float], num_channels: int) -> np.ndarray:
    """Return one value per channel; one that is the same for all channels fits any number of them."""
    given = np.atleast_1d(np.asarray(values, np.float64))
    return np.full(num_channels, given[0]) if (given == given[0]).all() else given
