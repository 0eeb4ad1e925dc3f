# SPDX-License-Identifier: Apache-2.0
"""
The images of visitors: which files are opened, and what is said of those that are not.

This file travels alone, into the demo Space: it needs Gradio and Pillow, and nothing of this package.
"""

import html
import logging
import stat
from pathlib import Path

import gradio as gr
from PIL import Image


logger = logging.getLogger(__name__)

MAX_FILE_SIZE = 20_000_000  # bytes
MAX_PIXELS = 64_000_000
# What browsers send. Others can start programs, as EPS does, or hold many images.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def refuse(message: str) -> gr.Error:
    """Return an error that the visitor sees until it is closed. Gradio would take `message` for HTML."""
    return gr.Error(html.escape(message), duration=None, print_exception=False)


def accept_uploads_only(page: gr.Blocks, upload: gr.Image) -> None:
    """
    Let `upload` hand on the path of a file that was uploaded through the page, and raise an error for any other.

    Gradio 6.31 checks paths only where a request carries its own mark, and downloads what a request names by its address.
    """

    def find(payload) -> str | None:
        return find_upload(payload.path, Path(upload.GRADIO_CACHE)) if payload is not None else None

    # A subclass that overrides the method would be another component to Gradio 6.31, without a frontend
    upload.preprocess = find  # type: ignore[method-assign]
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = keep_here(block)  # type: ignore[method-assign]


def keep_here(block: gr.blocks.Block):
    """Return the method with which `block` takes in files, for those on this machine only."""
    take_in = block.async_move_resource_to_block_cache

    async def take_in_files(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise refuse("Upload the image itself: this page opens no addresses.")
        return await take_in(path)

    return take_in_files


def find_upload(path: str | None, folder: Path) -> str:
    """Return where a file lies that was uploaded into `folder`, or raise an error that the visitor can read."""
    try:
        file = Path(path or "").resolve(strict=True)
        status = file.stat()
    except (OSError, ValueError, RuntimeError):  # there is none, or the name can be none
        raise refuse("This file is not here any more. Upload it again.") from None
    if not file.is_relative_to(folder.resolve()) or not stat.S_ISREG(status.st_mode):
        raise refuse("This page opens only files that were uploaded through it.")
    if status.st_size > MAX_FILE_SIZE:
        raise refuse(f"This file has {status.st_size / 1e6:.0f} MB. The limit is {MAX_FILE_SIZE / 1e6:.0f} MB.")
    return str(file)


def open_image(path: str) -> Image.Image:
    """Decode an uploaded file, or raise an error that the visitor can read."""
    limit = f"The limit is {MAX_PIXELS // 10**6} megapixels: make it smaller and try again."
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise refuse(f"This image is far too large. {limit}") from None
    except Exception:  # as below; the log has what it was, which may be no fault of the file
        logger.warning("An upload cannot be opened", exc_info=True)
        raise refuse("This file is no image that can be read. Try a JPEG, PNG or WebP file.") from None
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise refuse(f"This image has {megapixels:.0f} megapixels ({image.width} x {image.height}). {limit}")
    try:
        image.load()
    except Exception:  # Pillow's plugins raise whatever a broken file makes them stumble over
        logger.warning("An upload cannot be decoded", exc_info=True)
        raise refuse("This image is damaged and cannot be read to its end.") from None
    return image
