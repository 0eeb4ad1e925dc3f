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
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import auto_docstring


if TYPE_CHECKING:
    # A saved processor takes along the files that its own file imports from. This import adds the other processor's.
    from .image_processing_mixer import MixerImageProcessor  # noqa: F401


class MixerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    num_channels (`int`, *optional*, defaults to `self.num_channels`):
        Number of channels of the processed images when `do_convert_rgb` is set: 3 for RGB, 1 for luminance.
    """

    num_channels: int


def convert_pil_image(image: Image.Image, num_channels: int) -> Image.Image:
    """
    Convert any PIL image to 8-bit RGB (3 channels) or luminance (1 channel), with the pixels that transformers' pipelines
    read: upright by its EXIF orientation, then Pillow's `convert("RGB")`, which drops transparency and clips values
    above 255.

    Raises:
        `ValueError`: Pillow converts no images of this mode.
    """
    try:
        upright = ImageOps.exif_transpose(image)
    except SyntaxError:
        # The metadata cannot be read. The image is taken as it lies.
        upright = image.copy()
    # Pillow would warn that it drops it
    upright.info.pop("transparency", None)
    try:
        rgb = upright.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"Expected an image that Pillow converts to RGB, got one in mode {image.mode!r} ({error}). Convert it to RGB "
            "or RGBA first."
        ) from error
    return rgb if num_channels == 3 else rgb.convert("L")


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

    def fetch_images(self, image_url_or_urls):
        # With Pillow in both backends. torchvision's decoder scales 16 bits to 8.
        return BaseImageProcessor.fetch_images(self, image_url_or_urls)

    def process_image(self, image, do_convert_rgb=None, num_channels=3, **kwargs):
        """
        Convert one PIL image, array or tensor to an array (PIL backend) or tensor (torchvision backend) of shape
        `(num_channels, height, width)`. Without `do_convert_rgb` the channels stay as they are.

        Arrays and tensors come out as a PIL image of the same pixels does: integers are clipped to [0, 255], and the last
        of 2 or 4 channels is taken as alpha and dropped. Floating-point ones keep their range.
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

        image = super().process_image(image, do_convert_rgb=False, **kwargs)  # (channels, height, width)
        if "float" not in str(image.dtype):
            image = self._to_8_bits(image)
        if len(image) in (2, 4):
            # Without the alpha channel
            image = image[:-1]
        if len(image) == num_channels:
            return image
        if len(image) == 1:
            # The one channel, repeated
            return image[[0] * num_channels]
        if len(image) == 3 and num_channels == 1:
            # Pillow's weights and rounding
            red, green, blue = image[:, None] * 1.0
            luminance = 19595 / 65536 * red + 38470 / 65536 * green + 7471 / 65536 * blue
            return luminance if "float" in str(image.dtype) else self._to_8_bits(luminance + 0.5)
        raise ValueError(f"Expected an image of 1 to 4 channels, got {len(image)} channels in shape {image.shape}.")

    @staticmethod
    def _to_8_bits(image):
        """Convert numbers to uint8 as Pillow does: clipped to [0, 255], fractions cut off, true as 255."""
        if "bool" in str(image.dtype):
            image = image * 255
        if isinstance(image, np.ndarray):
            return image.clip(0, 255).astype(np.uint8)
        return image.long().clip(0, 255).byte()

    def _standardize_kwargs(self, num_channels=None, do_convert_rgb=None, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if do_convert_rgb:
            # A value that is the same for all channels fits any number of them.
            for name in ("image_mean", "image_std"):
                if kwargs[name] is not None and len(set(np.atleast_1d(kwargs[name]))) == 1:
                    kwargs[name] = (float(np.atleast_1d(kwargs[name])[0]),) * num_channels
        return {**kwargs, "num_channels": num_channels, "do_convert_rgb": do_convert_rgb}

    def center_crop(self, image, size, **kwargs):
        """
        Crop the center of an image of shape `(..., height, width)`. Where an odd number of pixels is left over, the offset
        is rounded as in torchvision's `CenterCrop`, so that the result is that of timm's evaluation transform.
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
