# SPDX-License-Identifier: Apache-2.0
"""The picture that stands for a demo where somebody shares it: its title, an image and its map."""

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..checkpoints import load_checkpoint
from .saliency import choose_stride, draw_image, draw_saliency, find_first, occlusion_map, read_outputs


# What sites that show links ask for
SIZE = (1200, 630)
BACKGROUND, TEXT, QUIET = "#f6f4f1", "#211c2b", "#5d5769"
MARGIN, SIDE = 60, 520


def draw_preview(title: str, folder: Path, example: Path | None) -> Image.Image:
    """
    Draw the picture.

    Args:
        title (`str`):
            What the page is called.
        folder (`Path`):
            The trained model.
        example (`Path`, *optional*):
            An image file. Without one the title stands alone.

    Returns:
        `PIL.Image.Image`: in RGB, of 1200 x 630 pixels.
    """
    preview = Image.new("RGB", SIZE, BACKGROUND)
    pen = ImageDraw.Draw(preview)
    width = 16 if example else 30
    pen.multiline_text((MARGIN, MARGIN), textwrap.fill(title, width), TEXT, ImageFont.load_default(62), spacing=16)
    lines = "An MLP-Mixer: what it sees,\nand what it looked at"
    pen.multiline_text((MARGIN, SIZE[1] - MARGIN), lines, QUIET, ImageFont.load_default(32), anchor="ld", spacing=12)
    if example is not None:
        picture, saliency = explain(folder, example)
        left, top = SIZE[0] - MARGIN - SIDE, (SIZE[1] - SIDE) // 2
        # The image on the left of a line, its map on the right
        shown = picture.copy()
        shown.paste(saliency.crop((picture.width // 2, 0, *picture.size)), (picture.width // 2, 0))
        shown = ImageOps.fit(shown, (SIDE, SIDE), Image.Resampling.LANCZOS)
        preview.paste(shown, (left, top))
        pen.line([(left + SIDE // 2, top), (left + SIDE // 2, top + SIDE)], "white", 4)
    return preview


def explain(folder: Path, example: Path) -> tuple[Image.Image, Image.Image]:
    """Return an image as the model sees it, and the map of its most likely label or first value."""
    model, processor = load_checkpoint(str(folder))
    model.eval()
    with Image.open(example) as image:
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        index = find_first(model.config, read_outputs(model, pixel_values)[0])
    stride = choose_stride(model.config, *pixel_values.shape[2:])
    saliency = occlusion_map(model, pixel_values, 2 * stride, stride, index)
    picture = draw_image(pixel_values, processor)
    return picture, draw_saliency(picture, saliency, max(saliency.abs().max().item(), 1e-4))
