# SPDX-License-Identifier: Apache-2.0
"""The models of a run: the one to train, the one to evaluate, and a teacher."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from transformers import AutoModelForImageClassification, PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from ..checkpoints import load_checkpoint
from ..checkpoints.loading import SHAPE_FIELDS
from ..configuration_mixer import MixerConfig, to_pair
from ..data.labels import SINGLE_LABEL
from ..hub_errors import clear_errors
from ..image_processing_mixer import MixerImageProcessor
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification
from .command_line import REGULARIZATION_FIELDS, ModelArguments
from .distillation import check_teacher, first_line


def build_model(model_args: ModelArguments, labels: list[str], problem_type: str = SINGLE_LABEL):
    """Return the model and its image processor: a pretrained one, or a variant from scratch."""
    id2label = dict(enumerate(labels))
    overrides: dict[str, Any] = {"problem_type": problem_type}
    for name in (*SHAPE_FIELDS, *REGULARIZATION_FIELDS):
        value = getattr(model_args, name)
        if value is not None:
            overrides[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    hub: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}

    if model_args.model_name_or_path is None:
        label2id = {label: index for index, label in id2label.items()}
        try:
            config = MixerConfig.from_variant(model_args.variant, id2label=id2label, label2id=label2id, **overrides)
        except StrictDataclassError as error:
            # Its cause says what is wrong, without the names of validators
            raise ValueError(str(error.__cause__ or error)) from error
        model = MixerForImageClassification(config)
        height, width = to_pair(config.image_size)
        processor_class = MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil
        image_processor = processor_class(size={"height": height, "width": width}, num_channels=config.num_channels)
    else:
        fixed = [f"--{name}" for name in SHAPE_FIELDS if name in overrides and name != "image_size"]
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot be set for a pretrained model, only from scratch")
        model, image_processor = load_checkpoint(
            model_args.model_name_or_path,
            id2label=id2label,
            revision=model_args.model_revision,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            dtype="float32",  # 16 bits would round small steps away
            **hub,
            **overrides,
        )
    if model_args.image_processor_name is not None:
        image_processor = AutoImageProcessor.from_pretrained(
            model_args.image_processor_name, trust_remote_code=model_args.trust_remote_code, **hub
        )
    return model, image_processor


def load_teacher(source: str, model_args: ModelArguments, model):
    """
    Return the model to learn from, of any architecture, and its image processor.

    Raises:
        `ValueError`: it cannot be loaded, or answers for other labels or images than the model that is trained.
    """
    hub: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if is_mixer(source, hub):
        teacher, processor = load_checkpoint(source, dtype="float32", **hub)
    else:
        teacher, processor = load_classifier(source, model_args.trust_remote_code, hub)
    check_teacher(teacher.config, model.config)
    return teacher, processor


def load_classifier(source: str, trust_remote_code: bool, hub: dict[str, Any]):
    """Return an image classifier of any architecture, in float32, and its image processor."""
    try:
        with clear_errors(source, is_upload=False):
            teacher, info = AutoModelForImageClassification.from_pretrained(
                source, dtype="float32", output_loading_info=True, trust_remote_code=trust_remote_code, **hub
            )
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)
    except (ConnectionError, PermissionError):
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"--teacher_model {source} cannot be loaded as an image classifier with its image processor: {first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    broken = [name for name, tensor in teacher.state_dict().items() if not tensor.isfinite().all()]
    if missing or broken:
        what = f"no weights for {missing[0]!r}" if missing else f"values in {broken[0]!r} that are not finite"
        raise ValueError(f"--teacher_model {source} has {what}: take one that was trained as an image classifier")
    return teacher, processor


def is_mixer(source: str, hub: dict[str, Any]) -> bool:
    """Whether a source is for [`~hf_mixer.load_checkpoint`], which is also the one to say what is wrong with it."""
    if Path(source).is_file():
        return True
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except OSError:
        return True
    # timm's Mixers are loaded without timm
    is_timm = str(settings.get("architecture", "")).startswith("mixer_")
    return is_timm or settings.get("model_type", MixerConfig.model_type) == MixerConfig.model_type


def load_trained_model(source: str, model_args: ModelArguments):
    """Return a trained model and its image processor as they are, apart from the image size."""
    size = model_args.image_size
    return load_checkpoint(
        source,
        image_size=to_pair(size[0] if len(size) == 1 else size) if size else None,
        revision=model_args.model_revision,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
    )
