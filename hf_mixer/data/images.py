# SPDX-License-Identifier: Apache-2.0
"""Image files: finding, decoding and preparing them."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ..progress import progress_bar
from ..threads import available_cores


# So many images are looked at for transparency and 16 bits
MAX_COUNTED_IMAGES = 10_000
# So many stand for all in the question which format they have
MAX_FORMAT_IMAGES = 100
# Bytes of an encoded image: JPEG files of 128 x 128 pixels, which have about so many, take two threads as long as one
SMALL_IMAGE = 4096


class ImageDataError(ValueError):
    """An image, or the data set that holds it, cannot be read; the message names it."""


def find_images(folder: str | os.PathLike) -> list[Path]:
    """
    Return the image files in `folder` and below it, sorted; hidden files and folders and other types are left out. Links
    are followed.
    """
    return [Path(path) for path in scan_images(folder)[0]]


def scan_images(folder: str | os.PathLike) -> tuple[list[str], Counter[str]]:
    """Return the same as `find_images`, and how many other files there are of each suffix, such as `.txt`."""
    images: list[str] = []
    others: Counter[str] = Counter()
    for path in walk_files(folder):
        if is_image_name(path):
            images.append(path)
        else:
            others[os.path.splitext(path)[1].lower()] += 1
    return sorted(images, key=lambda path: path.split(os.sep)), others


def walk_files(folder: str | os.PathLike) -> Iterator[str]:
    """Give the files in `folder` and below it, without hidden files and folders. Links are followed, but not upwards."""
    for directory, folders, names in os.walk(os.fspath(folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_upwards(directory, name)]
        yield from (os.path.join(directory, name) for name in names if not name.startswith("."))


def _leads_upwards(directory: str, name: str) -> bool:
    path = os.path.join(directory, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return os.path.commonpath([os.path.realpath(directory), target]) == target


def is_image_name(path: str | os.PathLike) -> bool:
    """Whether the suffix of a file is one of an image format."""
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def open_image(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """
    Read and decode one image.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            A file, or the contents of one.
        name (`str`, *optional*):
            What to call the image in an error, where `source` is not a file.

    Raises:
        [`ImageDataError`]: the image cannot be read; the message names it.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except Exception as error:  # a broken file makes Pillow's plugins raise errors of any type
        raise _unreadable(source, name, error) from error
    return image


def _unreadable(source: str | os.PathLike | bytes, name: str | None, error: Exception) -> ImageDataError:
    """Return an error that names the image once."""
    reason = str(error)
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty, broken or not an image"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    name = name or ("in memory" if isinstance(source, bytes) else str(source))
    return ImageDataError(f"cannot read the image {name}: {reason}")


def open_source(source: dict) -> Image.Image:
    """Read and decode one entry of an undecoded image column, which has `bytes` or `path`."""
    return open_image(source["path"] if source["bytes"] is None else source["bytes"], source["path"])


def decoding_threads(dataset: Dataset) -> int:
    """
    Return how many threads read the images of a data set, in its undecoded column `image`, fastest.

    Small ones in memory are read by one: what they take is mostly Python, which one thread runs at a time. For the images of
    CIFAR-10 two threads need 1.8 times as long as one, and eight 2.3 times (two cores of an Intel Xeon, Python 3.11).
    """
    contents = [source["bytes"] for source in dataset[:16]["image"]]
    is_small = all(content is not None and len(content) < SMALL_IMAGE for content in contents)
    return 1 if is_small else min(8, available_cores())


def find_problems(read: Callable[[int], object], count: int) -> dict[int, str]:
    """
    Call `read` with the number of every image, in threads and with a progress bar. Return the messages of those that
    raise [`ImageDataError`], by number.
    """

    def problem(index: int) -> str | None:
        try:
            read(index)
        except ImageDataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = progress_bar(pool.map(problem, range(count)), desc="Checking images", total=count, leave=False)
        return {index: text for index, text in enumerate(problems) if text is not None}


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return the places of `count` among `length` things, the first and the last of them included, or of all there are."""
    return np.linspace(0, max(length - 1, 0), min(length, count)).round().astype(int).tolist()


def find_image_format(dataset: Dataset) -> str | None:
    """
    Return the format of the encoded images, such as `"JPEG"` or `"PNG"`; `None` where they have several.

    Args:
        dataset (`Dataset`):
            A column `image`, undecoded. Of more than 100 images, 100 at equal distances are looked at.

    Raises:
        [`ImageDataError`]: an image cannot be read; the message names it.
    """
    images = dataset.select_columns("image")
    sources = (images[row]["image"] for row in evenly_spaced(len(images), MAX_FORMAT_IMAGES))
    formats = {_inspect(source, lambda image: image.format) for source in sources}
    return formats.pop() if len(formats) == 1 else None


def count_special_images(dataset: Dataset) -> dict[str, int]:
    """
    Count the images that look different to a model than to a viewer: transparent ones, which turn black or lose what
    hides their background, and those of more than 8 bits per channel, which are cut off at 255.

    Args:
        dataset (`Dataset`):
            A column `image`, undecoded. Of more than 10,000 images, 10,000 at equal distances are looked at.

    Returns:
        `dict[str, int]`: `num_images`, which were looked at, and of these `num_transparent`, in which at least one pixel
        is not opaque, and `num_16_bit`.

    Raises:
        [`ImageDataError`]: an image cannot be read; the message names it.
    """
    images = dataset.select_columns("image")
    rows = evenly_spaced(len(images), MAX_COUNTED_IMAGES)
    count = len(rows)
    with ThreadPoolExecutor(decoding_threads(images)) as pool:
        found = pool.map(lambda row: _inspect(images[row]["image"], _describe), rows)
        kinds = Counter(progress_bar(found, desc="Checking colors", total=count, leave=False))
    return {"num_images": count, "num_transparent": kinds["transparent"], "num_16_bit": kinds["16 bit"]}


def _inspect(source: dict, look: Callable[[Image.Image], str | None]) -> str | None:
    """Return what `look` says of an entry of an undecoded image column, which is opened, but not decoded."""
    contents = source["path"] if source["bytes"] is None else source["bytes"]
    try:
        with Image.open(io.BytesIO(contents) if isinstance(contents, bytes) else contents) as image:
            return look(image)
    except Exception as error:  # as in `open_image`
        raise _unreadable(contents, source["path"], error) from error


def _describe(image: Image.Image) -> str | None:
    """Return `transparent` or `16 bit` for an image that is. Pixels are only decoded where that has to be known."""
    if has_many_bits(image):
        return "16 bit"
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return "transparent"
    return None


def has_many_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


@dataclass(frozen=True)
class ImageConversion:
    """
    What to do with images that image processors of transformers spoil, which call `convert("RGB")`. By default nothing:
    every image stays as it is.

    Args:
        flatten_transparency (`str`, *optional*):
            The color that shows through transparent pixels, by its name (`"white"`) or as `"#rrggbb"`.
        scale_16_bit (`bool`, *optional*, defaults to `False`):
            Whether to scale images of 16 bits per channel (and floating-point ones in [0, 1]) to 8 bits.

    Raises:
        `ValueError`: the color is not known; or, for an image, that its range of values is not known.
    """

    flatten_transparency: str | None = None
    scale_16_bit: bool = False

    def __post_init__(self):
        if self.flatten_transparency is not None:
            try:
                ImageColor.getrgb(self.flatten_transparency)
            except ValueError:
                raise ValueError(
                    f"--flatten_transparency {self.flatten_transparency} is no color: give a name such as white, or "
                    "#rrggbb"
                ) from None

    def options(self) -> dict[str, str | bool]:
        """Return the arguments that are in use, as records have them."""
        return {name: value for name, value in vars(self).items() if value}

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image upright and in 8 bits per channel or opaque, where that was asked for and it was not."""
        scaled = self.scale_16_bit and has_many_bits(image)
        flattened = self.flatten_transparency is not None and image.has_transparency_data and not has_many_bits(image)
        if not scaled and not flattened:
            return image
        try:
            # Here, because its orientation is lost below
            image = ImageOps.exif_transpose(image)
        except SyntaxError:
            # The metadata cannot be read. The image is taken as it lies.
            pass
        if scaled:
            return _scale_to_8_bits(image)
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, self.flatten_transparency)
        return Image.alpha_composite(background, image).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Bring the values of an image of mode `I`, `I;16` or `F` to [0, 255]."""
    pixels = np.asarray(image)
    if image.mode == "F":
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            raise ValueError(
                f"Expected a floating-point image in [0, 1] or [0, 255], got values from {pixels.min()} to "
                f"{pixels.max()}. Convert it to 8 bits first."
            )
        return Image.fromarray(np.round(pixels * (255 if pixels.max() <= 1 else 1)).astype(np.uint8))

    # Pillow opens 16-bit files as "I;16" or, in some formats, as "I" with the same range
    pixels = pixels.astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            f"Expected an image of 8 or 16 bits per channel, got values from {pixels.min()} to {pixels.max()} in "
            f"mode {image.mode!r}. Convert it to 8 bits first."
        )
    if image.mode.startswith("I;16") or pixels.max() > 255:
        pixels = (pixels + 128) // 257
    return Image.fromarray(pixels.astype(np.uint8))


class ImageTransform:
    """
    Batch transform for `Dataset.with_transform`: decode the images and run them through an image processor.

    Args:
        image_processor:
            The image processor of the model.
        conversion ([`ImageConversion`], *optional*):
            What to do with transparent and 16-bit images before the image processor gets them. By default nothing.
        kwargs:
            More arguments for the image processor, such as `do_rescale=False, do_normalize=False` to get uint8 pixels.
    """

    def __init__(self, image_processor, conversion: ImageConversion = ImageConversion(), **kwargs):
        self.image_processor = image_processor
        self.conversion = conversion
        self.kwargs = kwargs

    def __call__(self, batch: dict) -> dict:
        images = [open_source(source) for source in batch["image"]]
        try:
            return {**self._prepare(images), "labels": batch["label"]}
        except ValueError:
            for image, source in zip(images, batch["image"]):
                try:
                    self._prepare([image])
                except ValueError as error:
                    name = source["path"] or "in memory"
                    raise ImageDataError(f"cannot prepare the image {name}: {error}") from error
            raise

    def _prepare(self, images: list[Image.Image]) -> dict:
        images = [self.conversion(image) for image in images]
        return self.image_processor(images, return_tensors="pt", **self.kwargs)


def collate_images(examples: list[dict] | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Stack the examples of an `ImageTransform`; a batch stays as it is.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` of shape `(batch_size, num_channels, height, width)`, and, unless all
        images lack it, `labels`; see `stack_labels`.
    """
    if isinstance(examples, dict):
        return examples
    batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    labels = [example["labels"] for example in examples]
    if any(label is not None for label in labels):
        batch["labels"] = stack_labels(labels)
    return batch


def stack_labels(labels: Sequence) -> torch.Tensor:
    """
    Return labels in prepared form as a tensor: int64 of shape `(batch_size,)` for classes, float32 of shape
    `(batch_size, num_labels)` for several labels of each image and for regression.
    """
    stacked = torch.from_numpy(np.asarray(labels))
    return stacked if stacked.ndim == 1 else stacked.float()
