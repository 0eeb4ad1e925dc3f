# SPDX-License-Identifier: Apache-2.0
"""MLP-Mixer for the Hugging Face ecosystem. Importing this package registers its classes with the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

# Without torchvision, `transformers.AutoImageProcessor` is a placeholder in transformers 5.17; the class itself works.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .checkpoints import load_checkpoint
from .compilation import compile_for_inference
from .configuration_mixer import MixerConfig
from .image_processing_mixer import MixerImageProcessor
from .image_processing_pil_mixer import MixerImageProcessorPil
from .modeling_mixer import (
    MixerBackbone,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerModel,
    MixerPreTrainedModel,
)


__version__ = "0.1.0"

AutoConfig.register(MixerConfig.model_type, MixerConfig, exist_ok=True)
AutoModel.register(MixerConfig, MixerModel, exist_ok=True)
AutoModelForImageClassification.register(MixerConfig, MixerForImageClassification, exist_ok=True)
AutoModelForMaskedImageModeling.register(MixerConfig, MixerForMaskedImageModeling, exist_ok=True)
AutoBackbone.register(MixerConfig, MixerBackbone, exist_ok=True)
image_processor_classes = {"pil": MixerImageProcessorPil}
if is_torchvision_available():
    image_processor_classes["torchvision"] = MixerImageProcessor
AutoImageProcessor.register(MixerConfig, image_processor_classes=image_processor_classes, exist_ok=True)
# `Trainer` looks the task of its own card up in this table of names, and drops all results of a card without a task.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault(MixerConfig.model_type, MixerForImageClassification.__name__)


__all__ = [
    "MixerBackbone",
    "MixerConfig",
    "MixerForImageClassification",
    "MixerForMaskedImageModeling",
    "MixerImageProcessor",
    "MixerImageProcessorPil",
    "MixerModel",
    "MixerPreTrainedModel",
    "compile_for_inference",
    "load_checkpoint",
]
