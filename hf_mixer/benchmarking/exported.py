# SPDX-License-Identifier: Apache-2.0
"""A Mixer in ONNX Runtime and in OpenVINO."""

import tempfile

import numpy as np
import torch
from PIL import Image

from transformers import PreTrainedModel

from ..configuration_mixer import to_pair
from ..deployment import export_model, load_exported
from ..deployment.signal_stack import keep_signal_stack
from ..image_processing_pil_mixer import MixerImageProcessorPil


# The format that each of them runs
RUNTIMES = {"onnxruntime": "onnx", "openvino": "openvino"}
NUM_CALIBRATION_IMAGES = 32


def run_exported(model: PreTrainedModel, runtime: str, dtype: str) -> PreTrainedModel:
    """
    Return a model as a runtime computes it, on the CPU and on as many threads as torch.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in float32.
        runtime (`str`):
            One of `RUNTIMES`.
        dtype (`str`):
            What to compute in: `"float32"`, `"int8"` (in ONNX Runtime activations are scaled in every batch), in OpenVINO
            also `"bfloat16"`.
    """
    height, width = to_pair(model.config.image_size)
    images = None
    if dtype == "int8" and runtime == "openvino":
        noise = np.random.default_rng(0).integers(0, 256, (NUM_CALIBRATION_IMAGES, height, width, 3), dtype=np.uint8)
        images = map(Image.fromarray, noise)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        MixerImageProcessorPil(size={"height": height, "width": width}).save_pretrained(f"{folder}/model")
        program_dtype = "int8" if dtype == "int8" else "float32"
        export_model(
            f"{folder}/model", f"{folder}/export", RUNTIMES[runtime], program_dtype, calibration_images=images
        )
        exported, _ = load_exported(f"{folder}/export")
    if dtype == "bfloat16":
        # The program is in float32
        config = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with keep_signal_stack():
            exported.exported.to("cpu", config=config)
    return exported
