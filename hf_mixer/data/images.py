# SPDX-License-Identifier: Apache-2.0
"""Image files: finding, decoding and preparing them."""

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS
from PIL import Image
from tqdm import tqdm


class ImageDataError(ValueError):
    """An image, or the data set that holds it, cannot be read; the message names it."""


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Return the image files in `folder` and below it, sorted; hidden files and other types are left out."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


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
        name = name or ("in memory" if isinstance(source, bytes) else str(source))
        raise ImageDataError(f"cannot read the image {name}: {error}") from error
    return image


def check_images(paths: Iterable[str | os.PathLike]) -> None:
    """
    Decode every image file once, in threads and with a progress bar.

    Raises:
        `ValueError`: some cannot be read; the message names the first ones.
    """

    def problem(path):
        try:
            open_image(path)
        except ValueError as error:
            return str(error)

    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [text for text in tqdm(pool.map(problem, paths), "Checking images", len(paths)) if text]
    if problems:
        rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError("; ".join(problems[:3]) + rest)


class ImageTransform:
    """
    Batch transform for `Dataset.with_transform`: decode the images and run them through an image processor.

    Args:
        image_processor:
            The image processor of the model.
        kwargs:
            More arguments for the image processor, such as `do_rescale=False, do_normalize=False` to get uint8 pixels.
    """

    def __init__(self, image_processor, **kwargs):
        self.image_processor = image_processor
        self.kwargs = kwargs

    def __call__(self, batch: dict) -> dict:
        images = []
        for source in batch["image"]:
            contents = source["path"] if source["bytes"] is None else source["bytes"]
            images.append(open_image(contents, source["path"]))
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
        return self.image_processor(images, return_tensors="pt", **self.kwargs)


def collate_images(examples: list[dict] | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack the examples of an `ImageTransform` into `pixel_values` and `labels`; a batch stays as it is."""
    if isinstance(examples, dict):
        return examples
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }
