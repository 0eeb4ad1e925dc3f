# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processor class for MLP-Mixer, PIL backend."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import auto_docstring


if TYPE_CHECKING:
    # Saving one processor copies the files that it imports from: this line makes the two travel together.
    from .image_processing_mixer import MixerImageProcessor  # noqa: F401


class MixerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    num_channels (`int`, *optional*, defaults to `self.num_channels`):
        Number of channels of the processed images when `do_convert_rgb` is set: 3 for RGB, 1 for luminance.
    """

    num_channels: int


def convert_pil_image(image: Image.Image, num_channels: int) -> Image.Image:
    """
    Convert any PIL image to 8-bit RGB (3 channels) or luminance (1 channel) as an image viewer would show it: upright
    by its EXIF orientation, transparency on white, 16 bits scaled to 8.

    Raises:
        `ValueError`: a floating-point image has values outside [0, 255], or its range is not known.
    """
    try:
        image = ImageOps.exif_transpose(image)
    except SyntaxError:
        # Metadata that cannot be read says nothing of the orientation
        pass
    if image.mode.startswith("I"):
        # Pillow opens 16-bit files as "I;16" or, in some formats, as "I" with the same range.
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"Expected an image of 8 or 16 bits per channel, got values from {pixels.min()} to {pixels.max()} in "
                f"mode {image.mode!r}. Convert it to 8 bits first."
            )
        if image.mode.startswith("I;16") or pixels.max() > 255:
            pixels = (pixels + 128) // 257
        image = Image.fromarray(pixels.astype(np.uint8))
    elif image.mode == "F":
        pixels = np.asarray(image)
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            raise ValueError(
                f"Expected a floating-point image in [0, 1] or [0, 255], got values from {pixels.min()} to "
                f"{pixels.max()}. Convert it to 8 bits first."
            )
        image = Image.fromarray(np.round(pixels * (255 if pixels.max() <= 1 else 1)).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or (
        image.mode in ("1", "L", "P", "RGB") and image.info.get("transparency") is not None
    ):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if num_channels == 3 else "L")


class MixerImageConversion:
    """
    What the two backends share: the defaults, the conversion of any image to `num_channels` channels, and the
    references to the code of both in every saved folder.
    """

    valid_kwargs = MixerImageProcessorKwargs
    _auto_class = "AutoImageProcessor"

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    num_channels = 3

    def process_image(self, image, do_convert_rgb=None, num_channels=3, **kwargs):
        """
        Convert one PIL image, array or tensor to an array (PIL backend) or tensor (torchvision backend) of shape
        `(num_channels, height, width)`. Without `do_convert_rgb` the channels stay as they are.
        """
        if not do_convert_rgb:
            return super().process_image(image, do_convert_rgb=False, **kwargs)
        if num_channels not in (1, 3):
            raise ValueError(
                f"`num_channels` has to be 1 (luminance) or 3 (RGB), got {num_channels}. Pass `do_convert_rgb=False` "
                "to keep the channels as they are."
            )
        if isinstance(image, Image.Image):
            return super().process_image(convert_pil_image(image, num_channels), do_convert_rgb=False, **kwargs)
        if isinstance(image, np.ndarray) and image.dtype == np.uint16:
            image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)

        image = super().process_image(image, do_convert_rgb=False, **kwargs)  # (channels, height, width)
        if len(image) in (2, 4):
            opaque = 1 if "float" in str(image.dtype) and image.max() <= 1 else 255
            alpha = image[-1:] / opaque
            image = self._round_like(image[:-1] * alpha + opaque * (1 - alpha), image)
        if len(image) == num_channels:
            return image
        if len(image) == 1:
            return image[[0] * num_channels]
        if len(image) == 3 and num_channels == 1:
            red, green, blue = image[:, None] * 1.0
            return self._round_like(0.299 * red + 0.587 * green + 0.114 * blue, image)
        raise ValueError(f"Expected an image of 1 to 4 channels, got {len(image)} channels in shape {image.shape}.")

    @staticmethod
    def _round_like(image, original):
        """Give `image` the type of `original`, which asks for rounding where that holds integers."""
        image = image if "float" in str(original.dtype) else image.round()
        return image.astype(original.dtype) if isinstance(image, np.ndarray) else image.to(original.dtype)

    def _standardize_kwargs(self, num_channels=None, do_convert_rgb=None, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if do_convert_rgb:
            # One value for all channels serves any number of them
            for name in ("image_mean", "image_std"):
                if kwargs[name] is not None and len(set(np.atleast_1d(kwargs[name]))) == 1:
                    kwargs[name] = (float(np.atleast_1d(kwargs[name])[0]),) * num_channels
        return {**kwargs, "num_channels": num_channels, "do_convert_rgb": do_convert_rgb}

    def center_crop(self, image, size, **kwargs):
        """
        Crop the center of an image of shape `(..., height, width)`. Where an odd number of pixels is left over, the offset
        is rounded as torchvision's `CenterCrop` does, so that images come out as timm's evaluation transform makes them.
        """
        height, width = image.shape[-2:]
        if not size.height or not size.width or size.height > height or size.width > width:
            return super().center_crop(image, size, **kwargs)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def to_dict(self):
        output = super().to_dict()
        output["auto_map"] = {
            "AutoImageProcessor": {
                "pil": "image_processing_pil_mixer.MixerImageProcessorPil",
                "torchvision": "image_processing_mixer.MixerImageProcessor",
            }
        }
        return output


@auto_docstring(
    custom_intro="""
    Image processor for MLP-Mixer on PIL and NumPy, which runs everywhere.

    The defaults resize to `size` with bilinear interpolation and normalize to [-1, 1], as Google did. A resize of the
    shorter side and a center crop, as timm does it, are
    `size={"shortest_edge": 256}, do_center_crop=True, crop_size=224, resample=3`.
    """
)
class MixerImageProcessorPil(MixerImageConversion, PilBackend):
    pass


__all__ = ["MixerImageProcessorPil"]
