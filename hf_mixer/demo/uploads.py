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
# What photographs and drawings come in, as far as this Pillow reads it. Others are more than images: EPS runs a program.
Image.init()
FORMATS = sorted({"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys())


def refuse(message: str) -> gr.Error:
    """Return an error that the visitor sees until it is closed. Gradio would take `message` for HTML."""
    return gr.Error(html.escape(message), duration=None, print_exception=False)


async def refuse_address(*arguments, **options):
    """
    Take the place of `gradio.processing_utils.async_ssrf_protected_download`, with which Gradio downloads what a request names
    by its address. Read from Gradio 6.31, which has no switch for that; it can go as soon as there is one.
    """
    raise refuse("This page opens no addresses: upload the image itself.")


def find_upload(payload: dict | None) -> str | None:
    """
    Return where the file lies that a request names, or raise an error that the visitor can read: it has to be one that was
    uploaded through the page. Gradio 6.31 looks at a path only where the request carries a mark of its own.
    """
    if payload is None:
        return None
    folder = Path(gr.utils.get_upload_folder()).resolve()
    try:
        file = Path(payload.get("path") or "").resolve(strict=True)
        status = file.stat()
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError):  # there is none, or the name cannot be one
        raise refuse("This file is not here any more: upload it again.") from None
    if not file.is_relative_to(folder) or not stat.S_ISREG(status.st_mode):
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
