# SPDX-License-Identifier: Apache-2.0
"""The files from which transformers.js runs a Mixer in browsers and in Node."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers.utils import IMAGE_PROCESSOR_NAME

from .settings import describe_image_processor


if TYPE_CHECKING:
    import onnx


# transformers.js calls them fp32, fp16 and q8
FILES = {"float32": "onnx/model.onnx", "float16": "onnx/model_fp16.onnx", "int8": "onnx/model_quantized.onnx"}
# Of one file, in bytes
LARGEST_FILE = 2**31 - 1


def write_transformers_js(folder: Path, networks: dict[str, "onnx.ModelProto"], image_processor) -> dict[str, str]:
    """
    Write what `pipeline("image-classification", ...)` of transformers.js 4 loads apart from `config.json`: the models, and
    `preprocessor_config.json`.

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

    Returns:
        `dict[str, str]`: The files of the models, relative to `folder`, by type.

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
        onnx.save(model, folder / FILES[dtype])
    settings = json.dumps(describe_browser_processor(image_processor), indent=2)
    (folder / IMAGE_PROCESSOR_NAME).write_text(settings + "\n", encoding="utf-8")
    return {dtype: FILES[dtype] for dtype in networks}


def describe_browser_processor(image_processor) -> dict[str, Any]:
    """
    Return the `preprocessor_config.json` for transformers.js, which converts images to RGB, rescales and normalizes them. The
    settings of the model's own image processor are under `computed_by_model`.
    """
    settings = describe_image_processor(image_processor)
    shared = {
        name: settings[name] for name in ("image_processor_type", "do_rescale", "rescale_factor", "do_normalize")
    }
    for name in ("image_mean", "image_std"):
        # Of three channels, also where the model takes one
        shared[name] = np.broadcast_to(settings[name], 3).tolist()
    return {**shared, "do_convert_rgb": True, "do_resize": False, "computed_by_model": settings}
