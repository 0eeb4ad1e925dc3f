# SPDX-License-Identifier: Apache-2.0
"""The model card of a trained folder, written from what the folder says happened."""

import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from transformers.image_utils import PILImageResampling
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_mixer import MixerConfig, to_pair
from ..flops import estimate_flops
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification
from ..utils import hide_tokens, is_hub_id, read_json


TEMPLATE = Path(__file__).parent / "TEMPLATE.md"
TASK = "image-classification"
LICENSE = "apache-2.0"
MAX_LABELS = 30

# Data that the template has a note on: what it is called in the card, and how its names look.
KNOWN_DATA = {
    "cifar10": ("CIFAR-10", r"cifar[-_]?10(?!\d)"),
    "imagenet-1k": ("ImageNet-1k", r"imagenet[-_]?1k|in1k"),
    "imagenet-21k": ("ImageNet-21k", r"imagenet[-_]?2[12]k|in2[12]k"),
    "digits": ("scikit-learn digits", r"^(scikit-learn )?digits$"),
}
# (name in the card, identifier at https://huggingface.co/metrics), by the keys of evaluation.json and eval_results.json
METRICS = {
    "top1": ("top-1 accuracy", "accuracy"),
    "top5": ("top-5 accuracy", "accuracy"),
    "loss": ("cross-entropy", "loss"),
    "ece": ("expected calibration error", "ece"),
    "eval_accuracy": ("top-1 accuracy", "accuracy"),
    "eval_loss": ("loss", "loss"),
}
PICTURES = ("training_curves.png", "confusion_matrix.png", "calibration.png")


def create_card(folder: str | os.PathLike, repo_id: str | None = None, revision: str | None = None) -> ModelCard:
    """
    Write the model card of a trained folder.

    It says what config.json, preprocessor_config.json, training_run.json, evaluation.json (else eval_results.json) and
    the pictures beside them say. What is not there, the card does not mention.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that holds a `MixerForImageClassification` and its image processor.
        repo_id (`str`, *optional*):
            The repository on the Hub that the examples load. By default they load `folder`.
        revision (`str`, *optional*):
            The commit, tag or branch that they load.

    Returns:
        `huggingface_hub.ModelCard`: neither saved nor pushed yet.

    Raises:
        `ValueError`: the folder holds no classifier or no image processor, or one of the files is damaged.
    """
    folder = Path(folder)
    config, processor = read_model(folder)
    run = read_results(folder / "training_run.json")
    evaluation = read_results(folder / "evaluation.json")
    trained_on = run.get("dataset") or {}
    if evaluation:
        measured, measured_on = evaluation, evaluation.get("dataset") or {}
    else:
        measured = read_results(folder / "eval_results.json")
        split, num_images = trained_on.get("eval_split"), trained_on.get("num_eval_images")
        measured_on = {**trained_on, "split": split, "num_images": num_images}
    metrics = {key: measured[key] for key in METRICS if is_number(measured.get(key))}
    name = repo_id.split("/")[-1] if repo_id else folder.resolve().name

    card = ModelCard.from_template(
        create_metadata(name, run, metrics, measured_on),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=plain(name),
        **describe_source(folder, repo_id, revision),
        **describe_model(config, processor),
        **describe_training(run),
        results=[(METRICS[key][0], format_metric(METRICS[key][1], value)) for key, value in metrics.items()],
        measured_on=describe_measurement(measured_on),
        extremes=find_extremes(evaluation.get("per_class") or []),
        speed=[
            (what, f"{record['images_per_second']:,.0f}", plain(record["hardware"]))
            for what, record in (("training", run), ("evaluation", evaluation))
            if is_number(record.get("images_per_second")) and record.get("hardware")
        ],
        pictures=[picture for picture in PICTURES if (folder / picture).is_file()],
        data=find_known_data(run.get("base_model"), trained_on.get("name"), measured_on.get("name")),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def read_model(folder: Path) -> tuple[MixerConfig, MixerImageProcessorPil]:
    """
    Return the configuration of the classifier in `folder` and its image processor.

    Raises:
        `ValueError`: the folder does not hold both.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    for file, writer in ((CONFIG_NAME, "model"), (IMAGE_PROCESSOR_NAME, "image_processor")):
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder} holds no {file}: give the output folder of `hf-mixer train`, or write the file with "
                f"`{writer}.save_pretrained({str(folder)!r})`"
            )
    expected = [MixerForImageClassification.__name__]
    architectures = read_json(folder / CONFIG_NAME).get("architectures")
    if architectures != expected:
        raise ValueError(
            f"{folder} holds no image classifier: {CONFIG_NAME} names the architectures {architectures}, expected "
            f"{expected}. `model.push_to_hub(...)` uploads any model."
        )
    config = MixerConfig.from_pretrained(folder)
    if not config.num_labels:
        raise ValueError(f"{folder} holds no image classifier: the model in it has no labels")
    return config, MixerImageProcessorPil.from_pretrained(folder)


def read_results(path: Path) -> dict[str, Any]:
    """Return what a file says about a run; nothing where there is no such file."""
    return read_json(path) if path.is_file() else {}


def create_metadata(
    name: str, run: dict[str, Any], metrics: dict[str, float], measured_on: dict[str, Any]
) -> ModelCardData:
    """Return the metadata of the card, by which the Hub finds and compares models."""
    base_model = run.get("base_model")
    datasets = {data["name"] for data in (run.get("dataset") or {}, measured_on) if is_hub_id(data.get("name"))}
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Image Classification",
            dataset_type=dataset_type(measured_on["name"]),
            dataset_name=dataset_name(measured_on["name"]),
            dataset_config=measured_on.get("config"),
            dataset_split=measured_on.get("split"),
            metric_type=METRICS[key][1],
            metric_name=METRICS[key][0],
            metric_value=round(value, 4),
        )
        for key, value in metrics.items()
        if measured_on.get("name")
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        license=run.get("license", LICENSE),
        datasets=sorted(datasets) or None,
        base_model=base_model if is_hub_id(base_model) else None,
        tags=[TASK, "vision", "mlp-mixer"],
        metrics=["accuracy"] if any(METRICS[key][1] == "accuracy" for key in metrics) else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def describe_source(folder: Path, repo_id: str | None, revision: str | None) -> dict[str, Any]:
    """Return how the examples of the card load the model, in Python and in a shell."""
    source = repo_id or os.fspath(folder)
    pinned = revision if repo_id else None
    return {
        "source": json.dumps(source),
        "shell_source": shlex.quote(source),
        "shell_revision": f" --model_revision {shlex.quote(pinned)}" if pinned else "",
        "pinned": f", revision={json.dumps(pinned)}" if pinned else "",
        "find_revision": repo_id is not None and revision is None,
        # Publishing adds the code to a folder without it
        "carries_code": repo_id is not None or any(folder.glob("*_mixer.py")),
    }


def describe_model(config: MixerConfig, processor: MixerImageProcessorPil) -> dict[str, Any]:
    """Return what the card says about the network, its images and its labels."""
    height, width = to_pair(config.image_size)
    return {
        "image_size": f"{height} x {width}",
        "larger_size": 2 * height if height == width else (2 * height, 2 * width),
        "colors": {1: "grey images", 3: "images"}.get(
            config.num_channels, f"images with {config.num_channels} channels"
        ),
        "num_labels": f"{config.num_labels:,}",
        "labels": describe_labels(config),
        "preprocessing": describe_preprocessing(processor),
        "architecture": describe_architecture(config),
    }


def describe_labels(config: MixerConfig) -> str:
    names = [config.id2label[index] for index in range(config.num_labels)]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return f"The {config.num_labels:,} labels have no names, only numbers."
    if len(names) <= MAX_LABELS:
        return ", ".join(map(code, names))
    shown = ", ".join(map(code, names[:10]))
    return f"{shown} and {len(names) - 10:,} more, all of them in `config.json`."


def describe_preprocessing(processor: MixerImageProcessorPil) -> str:
    """Say in words what the image processor does, in the order in which it does it."""
    steps = []
    if processor.do_convert_rgb:
        steps.append(f"turned upright and converted to {'RGB' if processor.num_channels == 3 else 'grey'}")
    if processor.do_resize:
        resample = PILImageResampling(processor.resample).name.lower()
        size = dict(processor.size)
        shortest_edge = f"a shorter side of {size['shortest_edge']} pixels" if "shortest_edge" in size else None
        steps.append(f"resized to {shortest_edge or format_size(size)} ({resample})")
    if processor.do_center_crop:
        steps.append(f"cropped to the {format_size(processor.crop_size)} in their center")
    if processor.do_rescale:
        steps.append(f"divided by {1 / processor.rescale_factor:g}")
    if processor.do_normalize:
        mean, std = (
            ", ".join(f"{value:g}" for value in dict.fromkeys(values))
            for values in (processor.image_mean, processor.image_std)
        )
        steps.append(f"normalized with mean {mean} and standard deviation {std}")
    return "; ".join(steps) or "taken as they are"


def describe_architecture(config: MixerConfig) -> list[tuple[str, str]]:
    with torch.device("meta"):
        num_parameters = MixerForImageClassification(config).num_parameters()
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
    origin = f"fine-tuned from {link(base_model)}" if base_model else "trained from scratch"
    if dataset.get("name"):
        origin = f"{origin} on {link_dataset(dataset)}"
    facts = {
        "data": link_dataset(dataset) if dataset.get("name") else None,
        "training images": f"{dataset['num_train_images']:,}" if dataset.get("num_train_images") else None,
        "validation images": f"{dataset['num_eval_images']:,}" if dataset.get("num_eval_images") else None,
        "hardware": plain(run["hardware"]) if run.get("hardware") else None,
        "processes": f"{run['num_processes']}" if (run.get("num_processes") or 1) > 1 else None,
        "duration": format_duration(run["duration_seconds"]) if run.get("duration_seconds") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items() if version),
    }
    return {
        "origin": origin if base_model or dataset.get("name") else "",
        "training": bool(run),
        "command": hide_tokens(run.get("command") or ""),
        "training_facts": [(name, value) for name, value in facts.items() if value],
        "hyperparameters": [
            (code(name), code(value))
            for name, value in (run.get("hyperparameters") or {}).items()
            if value is not None and "token" not in name
        ],
    }


def describe_measurement(dataset: dict[str, Any]) -> str:
    images = f"{dataset['num_images']:,} images" if dataset.get("num_images") else "the images"
    split = f" of the split {code(dataset['split'])}" if dataset.get("split") else " held back from training"
    return images + split + (f" of {link_dataset(dataset)}" if dataset.get("name") else "")


def find_extremes(per_class: list[dict[str, Any]]) -> list[str]:
    """Return the lowest and the highest accuracy of a class, where there are at least two."""
    measured = sorted((entry for entry in per_class if is_number(entry.get("accuracy"))), key=lambda e: e["accuracy"])
    if len(measured) < 2:
        return []
    return [
        f"{format_metric('accuracy', entry['accuracy'])} ({code(entry['label'])}, {entry['num_images']:,} images)"
        for entry in (measured[0], measured[-1])
    ]


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
    return KNOWN_DATA[known[-1]][0] if known else Path(name).name


def dataset_type(name: str) -> str:
    if is_hub_id(name):
        return name
    return "digits" if "digits" in find_known_data(name) else "imagefolder"


def plain(text: Any) -> str:
    """Return `text` as one line of Markdown that looks like it."""
    return re.sub(r"([\\`*<>\[\]|{}])", r"\\\1", " ".join(str(text).split()))


def code(text: Any) -> str:
    """Return `text` as inline code, also inside a table."""
    text = " ".join(str(text).split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def link(name: str) -> str:
    """Return a link to a model on the Hub, or the last part of the name of another one."""
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else code(Path(name).name)


def link_dataset(dataset: dict[str, Any]) -> str:
    name = dataset["name"]
    if not is_hub_id(name):
        return dataset_name(name) if find_known_data(name) else f"a folder of images, {code(Path(name).name)}"
    config = f" ({code(dataset['config'])})" if dataset.get("config") else ""
    return f"[{dataset_name(name)}](https://huggingface.co/datasets/{name}){config}"


def format_metric(metric: str, value: float) -> str:
    return f"{value * 100:.2f} %" if metric in ("accuracy", "ece") else f"{value:.4f}"


def format_size(size: dict[str, int]) -> str:
    return f"{size['height']} x {size['width']} pixels"


def format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


__all__ = ["create_card"]
