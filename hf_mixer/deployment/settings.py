# SPDX-License-Identifier: Apache-2.0
"""The settings beside an exported program, which load everywhere without code of this package."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_mixer import MixerConfig
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..utils import read_json


# transformers and transformers.js know a fixed list of models and image processors. These have the same outputs and the same
# settings of images, and neither is asked to compute anything.
PORTABLE_MODEL_TYPE, PORTABLE_IMAGE_PROCESSOR = "vit", "ViTImageProcessor"
# Fields about the model as Python code, of which an export has none
CODE_FIELDS = ("auto_map", "dtype", "out_features", "out_indices", "quantization_config")


def describe_config(config: MixerConfig) -> dict[str, Any]:
    """Return the `config.json` of an export: the fields of the Mixer, under a type that every library knows."""
    fields = json.loads(config.to_json_string())
    fields = {name: value for name, value in fields.items() if value is not None and name not in CODE_FIELDS}
    return {**fields, "model_type": PORTABLE_MODEL_TYPE}


def describe_image_processor(image_processor) -> dict[str, Any]:
    """Return the `preprocessor_config.json` of an export."""
    settings = image_processor.to_dict()
    settings.pop("auto_map", None)
    settings["image_processor_type"] = PORTABLE_IMAGE_PROCESSOR
    if image_processor.num_channels != 3:
        # It would convert them to RGB
        settings["do_convert_rgb"] = False
        for name in ("image_mean", "image_std"):
            settings[name] = settings[name][: image_processor.num_channels]
    return settings


def write_settings(folder: Path, config: MixerConfig, image_processor) -> None:
    """Write the settings of an export into its folder."""
    files = {CONFIG_NAME: describe_config(config), IMAGE_PROCESSOR_NAME: describe_image_processor(image_processor)}
    for name, settings in files.items():
        (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_settings(
    folder: Path, image_processor: dict[str, Any] | None = None
) -> tuple[MixerConfig, MixerImageProcessorPil]:
    """
    Return the configuration of the Mixer that was exported to a folder, and its image processor, whose settings are those in
    the folder or `image_processor`.

    Raises:
        `ValueError`: the folder holds none.
    """
    fields = read_json(folder / CONFIG_NAME)
    if fields.pop("model_type", None) != PORTABLE_MODEL_TYPE or "token_mlp_dim" not in fields:
        raise ValueError(f"{folder / CONFIG_NAME} describes no exported MLP-Mixer: export the model again")
    settings = dict(image_processor or read_json(folder / IMAGE_PROCESSOR_NAME))
    settings.pop("image_processor_type", None)
    if settings.get("num_channels") == 1:
        settings["do_convert_rgb"] = True
    return MixerConfig.from_dict(fields), MixerImageProcessorPil.from_dict(settings)
