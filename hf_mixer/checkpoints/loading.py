# SPDX-License-Identifier: Apache-2.0
"""Loading a Mixer from any source: our own folders, timm's and Google's checkpoints, Edifice's."""

import functools
import math
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    is_torchvision_available,
)

from ..configuration_mixer import MixerConfig, to_pair
from ..image_processing_mixer import MixerImageProcessor
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification, MixerModel, MixerPreTrainedModel
from ..utils import read_json
from .layouts import GOOGLE, TIMM
from .sources import Source, check_finite, find_checkpoint, infer_config, open_safetensors, read_settings, read_source
from .torch_files import load_without_code


# The fields of `MixerConfig` that pretrained weights decide, and that training from scratch chooses
SHAPE_FIELDS = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "token_mlp_dim",
    "channel_mlp_dim",
    "hidden_act",
)
# What a model class adds to the network itself: a checkpoint of another class has no weights for it.
ADDED_MODULES = ("classifier.", "decoder.", "mask_token")
# The 1,000 classes of ILSVRC 2012 in the usual order: WordNet identifier and lemmas.
IMAGENET_LABELS = Path(__file__).parent / "imagenet1k_labels.txt"


def load_checkpoint(
    source: str,
    model_class: type[MixerPreTrainedModel] = MixerForImageClassification,
    image_size: int | tuple[int, int] | None = None,
    resize_method: str | None = None,
    num_labels: int | None = None,
    id2label: dict[int, str] | None = None,
    ignore_mismatched_sizes: bool = True,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    source_image_size: int | tuple[int, int] | None = None,
    num_channels: int | None = None,
    allow_nan: bool = False,
    cache_dir: str | None = None,
    token: str | None = None,
    **config_overrides,
) -> tuple[MixerPreTrainedModel, MixerImageProcessorPil | MixerImageProcessor]:
    """
    Load a model and its image processor.

    Args:
        source (`str`):
            A repository on the Hub, a folder or a file: ours, timm's (`timm/mixer_b16_224.goog_in21k_ft_in1k`; also
            `pytorch_model.bin` and the `.pth.tar` of its `train.py`, averaged weights first), Google's (`.npz`, either
            layout) or Edifice's (`.safetensors`).
        model_class (`type`, *optional*, defaults to `MixerForImageClassification`):
            The class to load: with classifier, bare, backbone or for masked image modeling.
        image_size (`int` or `tuple[int, int]`, *optional*):
            Resize the model to this image size (see `MixerPreTrainedModel.resize_image_size`), the processor as well.
        resize_method (`str`, *optional*):
            `"block_diagonal"` or `"interpolate"`. By default the first for multiples of the source's size.
        num_labels (`int`, *optional*), id2label (`dict[int, str]`, *optional*):
            Labels of the classifier. A number other than the source's starts a new classifier.
        ignore_mismatched_sizes (`bool`, *optional*, defaults to `True`):
            Whether it may. Otherwise another number is refused.
        dtype (`torch.dtype` or `str`, *optional*):
            Type of the weights. By default the one they are stored in.
        revision (`str`, *optional*), cache_dir (`str`, *optional*), token (`str`, *optional*):
            For the Hub.
        source_image_size (`int` or `tuple[int, int]`, *optional*):
            Image size of a source whose patches form no square; tensors do not tell.
        num_channels (`int`, *optional*):
            Number of channels of an Edifice checkpoint that has neither 3 nor 1.
        allow_nan (`bool`, *optional*, defaults to `False`):
            Whether to accept weights that are not finite.
        config_overrides:
            Fields of `MixerConfig` that leave the weights as they are, such as `drop_path_rate`.

    Returns:
        `tuple`: the model, in evaluation mode, and its image processor (on torchvision where that is installed).

    Raises:
        `ValueError`: the source does not exist, cannot be fetched, is damaged, could run code, or is no MLP-Mixer.
    """
    if id2label is not None:
        if sorted(id2label) != list(range(len(id2label))) or num_labels not in (None, len(id2label)):
            raise ValueError(
                f"`id2label` has to name the labels from 0 to {len(id2label) - 1}, and all `num_labels` of them"
            )
        config_overrides |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        num_labels = len(id2label)

    path = find_checkpoint(source, revision, cache_dir=cache_dir, token=token)
    if is_own_folder(path):
        model, processor = load_own_folder(
            path, model_class, num_labels, ignore_mismatched_sizes, dtype, allow_nan, config_overrides
        )
    else:
        checkpoint = read_source(path, allow_nan)
        if not ignore_mismatched_sizes and num_labels not in (None, checkpoint.num_labels):
            raise ValueError(
                f"The classifier of {source} has {checkpoint.num_labels} labels, not {num_labels}: pass "
                "`ignore_mismatched_sizes=True` to start a new one"
            )
        model = build_from_source(
            checkpoint, model_class, num_labels, dtype, source_image_size, num_channels, config_overrides
        )
        processor = build_image_processor(checkpoint, model.config)
    if image_size is not None:
        resize_processor(processor, to_pair(model.config.image_size), to_pair(image_size))
        model.resize_image_size(image_size, method=resize_method)
    return model.eval(), processor


def is_own_folder(path: Path) -> bool:
    """Whether `path` is a folder that this package saved, or the weights in one."""
    return read_settings(path).get("model_type") == MixerConfig.model_type


def load_own_folder(
    path: Path,
    model_class: type[MixerPreTrainedModel],
    num_labels: int | None,
    ignore_mismatched_sizes: bool,
    dtype: torch.dtype | str | None,
    allow_nan: bool,
    config_overrides: dict,
) -> tuple[MixerPreTrainedModel, MixerImageProcessorPil | MixerImageProcessor]:
    """Load from a folder that this package saved; for the arguments see `load_checkpoint`."""
    folder = path if path.is_dir() else path.parent
    check_own_folder(folder)
    if num_labels is not None and "id2label" not in config_overrides:
        config_overrides |= {"num_labels": num_labels}
    model, info = model_class.from_pretrained(
        folder, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True, **config_overrides
    )
    check_shapes(path, info["mismatched_keys"], num_labels, ignore_mismatched_sizes)
    missing = sorted(key for key in info["missing_keys"] if not any(name in key for name in ADDED_MODULES))
    if missing:
        raise ValueError(f"{path} misses {len(missing)} tensors, such as {missing[0]!r}")
    if not allow_nan:
        check_finite(str(path), model.state_dict())
    if num_labels is None and "classifier.weight" in info["missing_keys"]:
        raise ValueError(
            f"{path} holds no classifier: pass `num_labels` to start one, 0 for none, or another `model_class`"
        )
    try:
        return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / IMAGE_PROCESSOR_NAME} describes no image processor: {error}") from error


def check_own_folder(folder: Path) -> None:
    """Refuse a folder of ours in which a file is damaged or missing. The message names the file."""
    try:
        MixerConfig.from_pretrained(folder)
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG_NAME} describes no MLP-Mixer: {error}") from error
    if not (folder / IMAGE_PROCESSOR_NAME).is_file():
        raise ValueError(
            f"{folder} lacks {IMAGE_PROCESSOR_NAME}, the settings of its image processor: copy it from where the model "
            "comes from, or save an image processor there with `save_pretrained`"
        )
    read_json(folder / IMAGE_PROCESSOR_NAME)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and not isinstance(read_json(index).get("weight_map"), dict):
        raise ValueError(f"{index} does not say which file holds which weights (weight_map): write it again")
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        with open_safetensors(file):
            pass
    if not files and (folder / WEIGHTS_NAME).is_file():
        load_without_code(folder / WEIGHTS_NAME)


def check_shapes(path: Path, mismatched: set[tuple], num_labels: int | None, may_replace_classifier: bool) -> None:
    """Refuse weights of other shapes than those in the configuration, but for a classifier that `num_labels` replaces."""
    shapes = {key: (tuple(stored), tuple(expected)) for key, stored, expected in mismatched}
    if num_labels is not None and "classifier.weight" in shapes:
        if not may_replace_classifier:
            raise ValueError(
                f"The classifier of {path} has {shapes['classifier.weight'][0][0]} labels, not {num_labels}: pass "
                "`ignore_mismatched_sizes=True` to start a new one"
            )
        shapes = {key: pair for key, pair in shapes.items() if not key.startswith("classifier.")}
    for key, (stored, expected) in sorted(shapes.items()):
        raise ValueError(f"{path}: {key!r} has the shape {stored}, and {expected} according to {CONFIG_NAME}")


def build_from_source(
    source: Source,
    model_class: type[MixerPreTrainedModel] = MixerForImageClassification,
    num_labels: int | None = None,
    dtype: torch.dtype | str | None = None,
    source_image_size: int | tuple[int, int] | None = None,
    num_channels: int | None = None,
    config_overrides: dict | None = None,
) -> MixerPreTrainedModel:
    """Build a model with the weights of `source`; for the arguments see `load_checkpoint`."""
    config = infer_config(source, source_image_size, num_channels)
    patch_size = to_pair(config.patch_size)
    state = {}
    for ours, theirs in source.layout.keys(source.num_layers, source.has_head):
        tensor = source.layout.import_tensor(ours, source.tensors[theirs], config.num_channels, patch_size)
        state[ours] = tensor.contiguous()

    labels = read_labels(source)
    if labels is not None:
        set_labels(config, labels)
    # Another activation function fits the same weights
    fixed = {*SHAPE_FIELDS, "num_classes"} - {"hidden_act"}
    for name, value in (config_overrides or {}).items():
        if MixerConfig.attribute_map.get(name, name) in fixed or not hasattr(config, name):
            raise ValueError(f"`{name}` cannot be set for a pretrained model")
        setattr(config, name, value)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels

    if config.num_labels != source.num_labels or not issubclass(model_class, MixerForImageClassification):
        # A new classifier, or none
        state = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.")}
    if issubclass(model_class, MixerModel):
        state = {key.removeprefix("mixer."): tensor for key, tensor in state.items()}
    # Files may mix types; none of them may lose precision
    widest_dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in source.tensors.values()))
    return model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype or widest_dtype)


def set_labels(config: MixerConfig, labels: list[str]) -> None:
    """Name the labels of a configuration, from 0 on."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def read_labels(source: Source) -> list[str] | None:
    """Return the label names that come with the source, or those of ImageNet-1k where it has that many."""
    names = source.settings.get("label_names") or source.pretrained_cfg.get("label_names")
    if isinstance(names, list) and len(names) == source.num_labels:
        descriptions = source.settings.get("label_descriptions") or {}
        return [str(descriptions.get(name, name)) for name in names]
    if source.num_labels == 1000 and source.layout in (GOOGLE, TIMM):
        return [line.split("\t")[1] for line in IMAGENET_LABELS.read_text(encoding="utf-8").splitlines()]
    return None


def build_image_processor(source: Source, config: MixerConfig) -> MixerImageProcessorPil | MixerImageProcessor:
    """Build the image processor that prepares images as the source's authors did."""
    height, width = to_pair(config.image_size)
    settings = {"size": {"height": height, "width": width}, "num_channels": config.num_channels}
    if source.layout is TIMM:
        pretrained = source.pretrained_cfg
        scale = pretrained.get("crop_pct") or 0.875
        if not isinstance(scale, int | float) or not 0 < scale <= 1:
            raise ValueError(f"{source.path}: crop_pct is {scale!r}, expected a number in (0, 1]")
        interpolation = str(pretrained.get("interpolation") or "bicubic").upper()
        if interpolation not in PILImageResampling.__members__:
            raise ValueError(f"{source.path}: interpolation is {interpolation.lower()!r}, expected one of Pillow's")
        scaled = {"height": math.floor(height / scale), "width": math.floor(width / scale)}
        squash = pretrained.get("crop_mode") == "squash" or height != width
        settings |= {
            "size": scaled if squash else {"shortest_edge": scaled["height"]},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "resample": PILImageResampling[interpolation],
            "image_mean": list(pretrained.get("mean") or [0.5] * 3),
            "image_std": list(pretrained.get("std") or [0.5] * 3),
        }
    if config.num_channels not in (1, 3):
        settings |= {"do_convert_rgb": False, "image_mean": [0.5], "image_std": [0.5]}
    return (MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil)(**settings)


def resize_processor(processor, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Scale the sizes of an image processor from images of `old` to images of `new` height and width."""
    size = processor.size
    if size.shortest_edge is None:
        processor.size = SizeDict(height=size.height * new[0] // old[0], width=size.width * new[1] // old[1])
    elif new[0] * old[1] == new[1] * old[0]:
        processor.size = SizeDict(shortest_edge=size.shortest_edge * new[0] // old[0])
    else:
        margin = size.shortest_edge / min(old)
        processor.size = SizeDict(height=math.floor(new[0] * margin), width=math.floor(new[1] * margin))
    if processor.do_center_crop:
        processor.crop_size = SizeDict(height=new[0], width=new[1])
