# SPDX-License-Identifier: Apache-2.0
"""The files from which transformers.js runs a Mixer in browsers and in Node."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers.utils import IMAGE_PROCESSOR_NAME

from .settings import PORTABLE_IMAGE_PROCESSOR


if TYPE_CHECKING:
    import onnx


# What transformers.js calls the types, and the files in which it looks for them
DTYPE_NAMES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}
FILE_NAMES = {"float32": "model.onnx", "float16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
# Bytes that one file of ONNX can hold
LARGEST_FILE = 2**31 - 1


def write_transformers_js(folder: Path, networks: dict[str, "onnx.ModelProto"], image_processor) -> None:
    """
    Write what `pipeline("image-classification", ...)` of transformers.js 4 loads apart from `config.json`: a file of
    `FILE_NAMES` in the folder `onnx` for each model, and `preprocessor_config.json`.

    transformers.js resizes as the canvas of the browser does it, and the scores would differ from those in Python. It is told
    not to resize: the models do it.

    Args:
        folder (`Path`):
            An existing folder without a folder `onnx`.
        networks (`dict[str, onnx.ModelProto]`):
            Networks as [`~deployment.onnx_preprocessing.add_preprocessing`] takes them, by what they compute in:
            `"float32"`, `"float16"` or `"int8"`.
        image_processor ([`MixerImageProcessor`] or [`MixerImageProcessorPil`]):
            The image processor of the model.

    Raises:
        `ValueError`: A setting of the image processor is not possible, or a file would be larger than 2 GB.
    """
    import onnx

    from .onnx_preprocessing import add_preprocessing

    (folder / "onnx").mkdir()
    for dtype, network in networks.items():
        model = add_preprocessing(network, image_processor)
        if model.ByteSize() > LARGEST_FILE:
            raise ValueError(
                f"Expected a model of at most 2 GB in one file, got {model.ByteSize() / 1e9:.1f} GB in {dtype}. Choose a "
                "smaller type."
            )
        onnx.save(model, folder / "onnx" / FILE_NAMES[dtype])
    settings = json.dumps(describe_browser_processor(image_processor), indent=2)
    (folder / IMAGE_PROCESSOR_NAME).write_text(settings + "\n", encoding="utf-8")


def describe_browser_processor(image_processor) -> dict[str, Any]:
    """
    Return the `preprocessor_config.json` for transformers.js, which converts images to RGB, rescales and normalizes them, and
    leaves the rest to the model.
    """
    settings = image_processor.to_dict()
    kept = {name: settings[name] for name in ("do_rescale", "rescale_factor", "do_normalize")}
    for name in ("image_mean", "image_std"):
        # Of three channels, also where the model takes one
        kept[name] = np.broadcast_to(settings[name], 3).tolist()
    return {"image_processor_type": PORTABLE_IMAGE_PROCESSOR, "do_convert_rgb": True, "do_resize": False, **kept}
