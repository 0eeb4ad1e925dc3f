# SPDX-License-Identifier: Apache-2.0
"""The words and tables in which a model card says what configuration, training and evaluation left behind."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from transformers.image_utils import PILImageResampling

from ..configuration_mixer import MixerConfig, to_pair
from ..evaluation.metrics import METRICS, Metric, confidence_interval
from ..flops import estimate_flops
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..local_paths import shorten_path
from ..modeling_mixer import MixerPreTrainedModel
from ..utils import format_bytes, hide_tokens, is_hub_id


MAX_LABELS = 30
# As safetensors names types, and as torch does
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}
# From so many times as many images of one label as of another on, the card warns
IMBALANCE = 10

# Whose images a training does not see
VALIDATION_SPLITS = (None, "val", "valid", "validation")
# Data that the template has a note on: what it is called in the card, and how its names look.
KNOWN_DATA = {
    "cifar10": ("CIFAR-10", r"cifar[-_]?10(?!\d)"),
    "imagenet-1k": ("ImageNet-1k", r"imagenet[-_]?1k|in1k"),
    "imagenet-21k": ("ImageNet-21k", r"imagenet[-_]?2[12]k|in2[12]k"),
    "digits": ("scikit-learn digits", r"^scikit-learn digits$"),
}
# By the names of data sets, the number of images of their splits and the format of their files, as their authors published them
PUBLISHED = {
    "cifar[-_]?10": ({"train": 50_000, "test": 10_000}, "PNG"),
    "imagenet[-_]?1k": ({"train": 1_281_167, "validation": 50_000, "test": 100_000}, "JPEG"),
}
# Control characters, those that reorder text, and halves of characters
INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Spaces of no width, and ends of lines
UNSHOWN = re.compile(rf"{INVISIBLE.pattern}|[\t-\r\x85\u200b\u2028\u2029\u2060\ufeff]")
# What might mean something in Markdown
SPECIAL = re.compile(r"[^\w ,.-]|_")
# By problem type: a figure of every label or output, and how a sentence on its extremes begins
EXTREMES = {
    "single_label_classification": ("accuracy", "By class the accuracy"),
    "multi_label_classification": ("average_precision", "By label the average precision"),
    "regression": ("r2", "By output R\N{SUPERSCRIPT TWO}"),
}


def describe_model(
    config: MixerConfig, processor: MixerImageProcessorPil, model_class: type[MixerPreTrainedModel]
) -> dict[str, Any]:
    """Return what the card says about the network, its images and its labels."""
    height, width = to_pair(config.image_size)
    colors = {1: "grey images", 3: "images"}
    return {
        "image_size": f"{height} x {width}",
        "larger_size": 2 * height if height == width else (2 * height, 2 * width),
        "larger_processing": {
            name: {key: 2 * value for key, value in dict(getattr(processor, name)).items()}
            for name, is_used in (("size", processor.do_resize), ("crop_size", processor.do_center_crop))
            if is_used
        },
        "colors": colors.get(config.num_channels, f"images with {config.num_channels} channels"),
        "is_grey": config.num_channels == 1,
        "num_labels": config.num_labels,
        "hidden_size": config.hidden_size,
        "num_patches": config.num_patches,
        "grid": config.grid,
        "out_indices": sorted({max(1, config.num_hidden_layers // 2), config.num_hidden_layers}),
        "outputs": describe_outputs(config),
        "labels": describe_labels(config),
        "thresholds": config.label_thresholds,
        "threshold_table": describe_thresholds(config),
        "preprocessing": describe_preprocessing(processor),
        "converts": processor.do_convert_rgb,
        "architecture": describe_architecture(config, model_class),
    }


def label_names(config: MixerConfig) -> list[str]:
    """Return the names of the labels, or an empty list where they have none."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    return [] if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def describe_labels(config: MixerConfig) -> str:
    names = label_names(config)
    if not names:
        return "They have no names, only numbers."
    if len(names) <= MAX_LABELS:
        return ", ".join(map(code, names))
    shown = ", ".join(map(code, names[:10]))
    return f"{shown} and {len(names) - 10:,} more, all of them in `config.json`."


def describe_outputs(config: MixerConfig) -> str:
    """Say what a regression model estimates."""
    names = label_names(config)
    if 0 < len(names) <= 3:
        return " and ".join(map(code, names))
    return "a value" if config.num_labels == 1 else f"{config.num_labels:,} values"


def describe_thresholds(config: MixerConfig) -> list[tuple[str, str]]:
    """Return the probabilities from which labels count as present, where they are few and differ."""
    names, thresholds = label_names(config), config.label_thresholds or []
    if len(set(thresholds)) < 2 or not 0 < len(names) <= MAX_LABELS:
        return []
    return [(code(name), f"{threshold:.3g}") for name, threshold in zip(names, thresholds)]


def describe_preprocessing(processor: MixerImageProcessorPil) -> str:
    """Say in words what the image processor does, in the order in which it does it."""
    steps = []
    if processor.do_convert_rgb:
        steps.append(f"turned upright and converted to {'RGB' if processor.num_channels == 3 else 'grey'}")
    if processor.do_resize:
        edge = dict(processor.size).get("shortest_edge")
        size = f"a shorter side of {edge} pixels" if edge else format_size(processor.size)
        steps.append(f"resized to {size} ({PILImageResampling(processor.resample).name.lower()})")
    if processor.do_center_crop:
        steps.append(f"cropped to the {format_size(processor.crop_size)} in their center")
    if processor.do_rescale:
        factor = processor.rescale_factor
        steps.append(f"divided by {1 / factor:g}" if factor else "multiplied by 0")
    if processor.do_normalize:
        mean, std = (
            ", ".join(f"{value:g}" for value in dict.fromkeys(values))
            for values in (processor.image_mean, processor.image_std)
        )
        steps.append(f"normalized with mean {mean} and standard deviation {std}")
    return "; ".join(steps) or "taken as they are"


def describe_conversion(dataset: dict[str, Any]) -> dict[str, Any]:
    """Return what was done to the images of a data set before the image processor got them."""
    conversion = dataset.get("image_conversion") or {}
    color, scaled = conversion.get("flatten_transparency"), conversion.get("scale_16_bit")
    steps = [f"transparent images were put on {code(color)}"] if color else []
    if scaled:
        steps.append("images of 16 bits were scaled to 8")
    return {"conversion": " and ".join(steps), "background": json.dumps(color) if color else None, "scaled": scaled}


def describe_weights(folder: Path) -> str:
    """Return the types and the size of the weights in a folder, or nothing where there are none."""
    paths = sorted(folder.glob("*.safetensors"))
    types = set()
    for path in paths:
        with safe_open(path, "pt") as file:
            types |= {file.get_slice(name).get_dtype() for name in file.keys()}
    size = format_bytes(sum(path.stat().st_size for path in paths))
    return f"{', '.join(sorted(TYPES.get(name, name) for name in types))}, {size}" if paths else ""


def describe_architecture(config: MixerConfig, model_class: type[MixerPreTrainedModel]) -> list[tuple[str, str]]:
    with torch.device("meta"):
        num_parameters = model_class(config).num_parameters()
    patch_height, patch_width = to_pair(config.patch_size)
    rows, columns = config.grid
    macs = estimate_flops(config) // 2
    return [
        ("parameters", f"{num_parameters:,}"),
        ("multiply-accumulates per image", f"{macs / 1e9:.1f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"),
        ("layers", f"{config.num_hidden_layers}"),
        ("hidden size", f"{config.hidden_size}"),
        ("patches", f"{rows} x {columns} of {patch_height} x {patch_width} pixels"),
        ("width of the token-mixing MLPs", f"{config.token_mlp_dim}"),
        ("width of the channel-mixing MLPs", f"{config.channel_mlp_dim}"),
        ("activation", code(config.hidden_act)),
    ]


def describe_training(run: dict[str, Any]) -> dict[str, Any]:
    """Return what the card says about the training."""
    base_model, dataset = run.get("base_model"), run.get("dataset") or {}
    # Without a record of a training, it may have been resized or converted
    how = "fine-tuned" if run.get("hyperparameters") else "made"
    origin = f"{how} from {link(base_model)}" if base_model else "trained from scratch"
    if dataset.get("name"):
        origin = f"{origin} on {link_dataset(dataset)}"
    counts = dataset.get("class_counts") or {}
    is_uneven = bool(counts) and max(counts.values()) >= IMBALANCE * min(counts.values())
    facts = {
        "data": link_dataset(dataset) if dataset.get("name") else "",
        "training images": format_count(dataset.get("num_train_images")),
        describe_eval_split(dataset): format_count(dataset.get("num_eval_images")),
        "training images by label": describe_counts(counts) if counts else "",
        "learned, too, from the answers of": link(run["teacher_model"]) if run.get("teacher_model") else "",
        "unreadable images left out": format_count(dataset.get("num_skipped_images")),
        "hardware": plain(run.get("hardware") or ""),
        "processes": str(run["num_processes"]) if (run.get("num_processes") or 1) > 1 else "",
        "duration": format_duration(run["duration_seconds"]) if run.get("duration_seconds") else "",
        "versions": ", ".join(
            f"{plain(name)} {plain(version)}" for name, version in (run.get("versions") or {}).items() if version
        ),
    }
    return {
        "origin": origin if base_model or dataset.get("name") else "",
        "training": bool(run),
        "imbalance": describe_counts(counts) if is_uneven else "",
        **describe_conversion(dataset),
        # Three backticks would end the block of code
        "command": one_line(hide_tokens(run.get("command") or "")).replace("```", "` ` `"),
        "training_facts": [(name, value) for name, value in facts.items() if value],
        "hyperparameters": [
            (code(name), code(value))
            for name, value in (run.get("hyperparameters") or {}).items()
            if value is not None and "token" not in name
        ],
    }


def describe_counts(counts: dict[str, int]) -> str:
    """Return the smallest and the largest number of images of a label."""
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return f"{counts[most]:,} of each"
    return f"{counts[fewest]:,} ({code(fewest)}) to {counts[most]:,} ({code(most)})"


def describe_eval_split(dataset: dict[str, Any]) -> str:
    """Return what the images are called that a training was measured on: validation images, unless they are something else."""
    split = dataset.get("eval_split")
    return "validation images" if split in VALIDATION_SPLITS else f"images of the split {code(split)}, measured along"


def describe_measurement(dataset: dict[str, Any]) -> str:
    """Say which images figures are from: how many of how many, and in which form where that is not the published one."""
    number, split = dataset.get("num_images"), dataset.get("split")
    # A part of the data, or a version of it, has numbers of its own
    name = (dataset.get("name") or "").split("/")[-1].lower()
    sizes, published_format = next((facts for key, facts in PUBLISHED.items() if re.fullmatch(key, name)), ({}, ""))
    total, form = sizes.get(split or "", 0), dataset.get("image_format")
    if number and total > number:
        images = f"{number:,} of the {count(total, 'image')}"
    else:
        images = count(number, "image") if number else "the images"
    is_compressed = published_format == "PNG" and form == "JPEG"
    return (
        images
        + (f" of the split {code(split)}" if split else "")
        + (f" of {link_dataset(dataset)}" if dataset.get("name") else "")
        + (", JPEG-compressed" if is_compressed else "")
    )


def describe_validation(dataset: dict[str, Any]) -> str:
    """Say which images the figures of a training are from. It may have held them back, or had them from another split."""
    if dataset.get("split") not in VALIDATION_SPLITS:
        return f"{describe_measurement(dataset)}, along with the training"
    number = dataset.get("num_images")
    return f"the {count(number, 'validation image') if number else 'validation images'} of the training"


def describe_choices(run: dict[str, Any]) -> str:
    """Say what of a run was chosen by the images that it was measured on."""
    hyperparameters = run.get("hyperparameters") or {}
    chosen = {
        "The weights were": hyperparameters.get("load_best_model_at_end"),
        "The thresholds of the labels were": hyperparameters.get("label_threshold") == "best_f1",
    }
    texts = [text for text, is_chosen in chosen.items() if is_chosen]
    return " and ".join([*texts[:1], *(text[0].lower() + text[1:] for text in texts[1:])])


def describe_extremes(problem_type: str, per_class: list[dict[str, Any]]) -> str:
    """Return a sentence on the labels with the lowest and the highest figure, where there are at least two."""
    key, beginning = EXTREMES[problem_type]
    measured = sorted((entry for entry in per_class if is_number(entry.get(key))), key=lambda entry: entry[key])
    if len(measured) < 2:
        return ""
    # Written as the figure that sums up the whole model
    metric = next(iter(METRICS[problem_type].values()))
    ends = [
        f"{format_metric(metric, entry[key], entry.get('num_images'))} ({code(entry['label'])}"
        + (f", {count(entry['num_images'], 'image')})" if "num_images" in entry else ")")
        for entry in (measured[0], measured[-1])
    ]
    return f"{beginning} goes from {ends[0]} to {ends[1]}."


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_known_data(*names: str | None) -> list[str]:
    """Return the keys of the data that the names of models and data sets speak of."""
    return [
        key
        for key, (_, pattern) in KNOWN_DATA.items()
        if any(name and re.search(pattern, name.lower()) for name in names)
    ]


def dataset_name(name: str) -> str:
    known = find_known_data(name)
    if known:
        return KNOWN_DATA[known[-1]][0]
    return name.split("/")[-1] if is_hub_id(name) else shorten_path(name)


def dataset_type(name: str) -> str:
    if is_hub_id(name):
        return name
    return "digits" if "digits" in find_known_data(name) else "imagefolder"


def refuse_control_characters(labels: Iterable[str]) -> None:
    """
    Raises:
        `ValueError`: a label is empty, or holds a character that nobody sees and that changes how the others are shown.
    """
    for index, label in enumerate(labels):
        match = UNSHOWN.search(label)
        if match is not None or not label.strip():
            reason = f"holds the character U+{ord(match[0]):04X}, which no page can show" if match else "shows nothing"
            raise ValueError(
                f"label {index}, {label!a}, {reason}: rename it in `id2label` and `label2id` of config.json"
            )


def one_line(text: Any) -> str:
    """Return `text` as one line without control characters."""
    return INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))


def plain(text: Any) -> str:
    """Return `text` as one line of Markdown that looks like it, also inside a table and as a heading."""
    # An underscore inside a word means nothing
    return re.sub(r"[\\`*<>\[\]|{}&#~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


def code(text: Any) -> str:
    """Return `text` as inline code, also inside a table."""
    text = one_line(text)
    if text and not set(text) & {"`", "|"}:
        return f"`{text}`"
    # A pipe is escaped one way in a table, and not at all elsewhere: only HTML is the same in both
    return f"<code>{SPECIAL.sub(lambda match: f'&#{ord(match[0])};', text)}</code>"


def link(name: str) -> str:
    """Return a link to a model on the Hub, or the last part of the name of another one."""
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else code(Path(name).name)


def link_dataset(dataset: dict[str, Any]) -> str:
    name = dataset["name"]
    if not is_hub_id(name):
        kind = "list" if name.endswith(".csv") else "folder"
        return dataset_name(name) if find_known_data(name) else f"the {kind} {code(dataset_name(name))}"
    config = f" ({code(dataset['config'])})" if dataset.get("config") else ""
    return f"[{dataset_name(name)}](https://huggingface.co/datasets/{name}){config}"


def format_metric(metric: Metric, value: float, num_images: int | None = None) -> str:
    """Return a figure with the digits that a number of images carries."""
    if metric.is_share:
        return f"{value * 100:.{count_digits(value, num_images)}f} %"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def format_interval(metric: Metric, value: float, num_images: int | None) -> str:
    """Return the 95 % interval of a figure that is the mean over images; nothing of the others."""
    if not (metric.is_mean_over_images and num_images):
        return ""
    digits = count_digits(value, num_images)
    low, high = (f"{bound * 100:.{digits}f}" for bound in confidence_interval(value, num_images))
    return f" ({low} to {high} %)"


def count_digits(share: float, num_images: int | None) -> int:
    """Return how many digits of a percentage, behind the point, a number of images carries."""
    digits = 2 if num_images is None else min(2, max(0, len(str(num_images)) - 3))
    # What is not all of them does not look like it
    while digits < 2 and 0 < share < 1 and round(share * 100, digits) in (0, 100):
        digits += 1
    return digits


def format_count(number: int | None) -> str:
    return f"{number:,}" if number else ""


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_size(size: dict[str, int]) -> str:
    return f"{size['height']} x {size['width']} pixels"


def format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
