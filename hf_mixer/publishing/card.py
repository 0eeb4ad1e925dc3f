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

from ..configuration_mixer import MixerConfig, to_pair
from ..flops import estimate_flops
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification


# In the repository, and where a wheel puts it
TEMPLATES = (Path(__file__).parents[2] / "model_cards" / "TEMPLATE.md", Path(__file__).parent / "TEMPLATE.md")
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


def create_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    revision: str | None = None,
    needs_processor: bool = True,
) -> ModelCard:
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
        needs_processor (`bool`, *optional*, defaults to `True`):
            Whether to refuse a folder without an image processor. Otherwise the card does not speak of it.

    Returns:
        `huggingface_hub.ModelCard`: not saved yet.

    Raises:
        `ValueError`: the folder holds no classifier or no image processor, or one of the files is damaged.
    """
    folder = Path(folder)
    config, processor = _read_model(folder, needs_processor)
    run = _read_json(folder / "training_run.json")
    evaluation = _read_json(folder / "evaluation.json")
    trained_on = run.get("dataset") or {}
    if evaluation:
        measured, measured_on = evaluation, evaluation.get("dataset") or {}
    else:
        measured = _read_json(folder / "eval_results.json")
        measured_on = {
            **trained_on,
            "split": trained_on.get("eval_split"),
            "num_images": trained_on.get("num_eval_images"),
        }

    name = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    metrics = [(key, measured[key]) for key in METRICS if _is_number(measured.get(key))]
    base_model = run.get("base_model")
    dataset_ids = sorted({data["name"] for data in (trained_on, measured_on) if _is_hub_id(data.get("name"))})
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        license=run.get("license", LICENSE),
        datasets=dataset_ids or None,
        base_model=base_model if _is_hub_id(base_model) else None,
        tags=[TASK, "vision", "mlp-mixer"],
        metrics=["accuracy"] if any(METRICS[key][1] == "accuracy" for key, _ in metrics) else None,
        model_name=name,
        eval_results=[_eval_result(key, value, measured_on) for key, value in metrics if measured_on.get("name")]
        or None,
    )
    if card_data.eval_results is None:
        card_data.model_name = None

    height, width = to_pair(config.image_size)
    source = repo_id or os.fspath(folder)
    template = next((path for path in TEMPLATES if path.is_file()), TEMPLATES[0])
    card = ModelCard.from_template(
        card_data,
        template_str=template.read_text(encoding="utf-8"),
        title=_plain(name),
        source=json.dumps(source),
        shell_source=shlex.quote(source),
        shell_revision=f" --model_revision {shlex.quote(revision)}" if repo_id and revision else "",
        pinned=f", revision={json.dumps(revision)}" if repo_id and revision else "",
        find_revision=repo_id is not None and revision is None,
        image_size=f"{height} x {width}",
        larger_size=2 * height if height == width else (2 * height, 2 * width),
        colors={1: "grey images", 3: "images"}.get(config.num_channels, f"images with {config.num_channels} channels"),
        num_labels=f"{config.num_labels:,}",
        labels=_describe_labels(config),
        origin=_describe_origin(base_model, trained_on),
        results=[(METRICS[key][0], _format_metric(METRICS[key][1], value)) for key, value in metrics],
        measured_on=_describe_measurement(measured_on),
        extremes=_find_extremes(evaluation.get("per_class") or []),
        preprocessing=_describe_preprocessing(processor) if processor is not None else None,
        architecture=_describe_architecture(config),
        training=bool(run),
        command=_remove_tokens(run.get("command") or ""),
        training_facts=_describe_training(run),
        hyperparameters=[
            (_code(key), _code(value))
            for key, value in (run.get("hyperparameters") or {}).items()
            if value is not None and "token" not in key
        ],
        speed=[
            (what, f"{record['images_per_second']:,.0f}", _plain(record["hardware"]))
            for what, record in (("training", run), ("evaluation", evaluation))
            if _is_number(record.get("images_per_second")) and record.get("hardware")
        ],
        pictures=[picture for picture in PICTURES if (folder / picture).is_file()],
        data=_known_data(base_model, trained_on.get("name"), measured_on.get("name")),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def _read_model(folder: Path, needs_processor: bool) -> tuple[MixerConfig, MixerImageProcessorPil | None]:
    """Return the configuration and the image processor in `folder`."""
    for file, way_out in (
        ("config.json", "model.save_pretrained"),
        ("preprocessor_config.json", "image_processor.save_pretrained"),
    ):
        if file == "preprocessor_config.json" and not needs_processor:
            continue
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder} holds no {file}: give the output folder of scripts/train.py, or write the file with "
                f"`{way_out}({str(folder)!r})`"
            )
    settings = _read_json(folder / "config.json")
    if settings.get("model_type") != MixerConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {settings.get('model_type')!r}, not {MixerConfig.model_type!r}"
        )
    config = MixerConfig.from_pretrained(folder)
    if MixerForImageClassification.__name__ not in (config.architectures or []) or not config.num_labels:
        raise ValueError(
            f"{folder} holds no image classifier: expected a `MixerForImageClassification` with labels, got "
            f"{', '.join(config.architectures or ['no architecture'])} with {config.num_labels}"
        )
    if not (folder / "preprocessor_config.json").is_file():
        return config, None
    return config, MixerImageProcessorPil.from_pretrained(folder)


def _read_json(path: Path) -> dict[str, Any]:
    """Return what the file holds; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}. Write it again, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} has to hold a JSON object, got {type(content).__name__}. Write it again, or remove it."
        )
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_hub_id(name: str | None) -> bool:
    """Whether `name` looks like `owner/repository`, and not like a folder or a file."""
    return bool(name and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not os.path.exists(name))


def _known_data(*names: str | None) -> list[str]:
    """Return the keys of the data that the names of models and data sets speak of."""
    return [
        key
        for key, (_, pattern) in KNOWN_DATA.items()
        if any(name and re.search(pattern, name.lower()) for name in names)
    ]


def _plain(text: Any) -> str:
    """Return `text` as one line of Markdown that looks like it."""
    return re.sub(r"([\\`*<>\[\]|{}])", r"\\\1", " ".join(str(text).split()))


def _code(text: Any) -> str:
    """Return `text` as inline code, also inside a table."""
    text = " ".join(str(text).split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _link(name: str, kind: str = "") -> str:
    """Return a link to a repository on the Hub, or the last part of the name of something else."""
    return f"[{name}](https://huggingface.co/{kind}{name})" if _is_hub_id(name) else _code(Path(name).name)


def _dataset_name(name: str) -> str:
    known = _known_data(name)
    return KNOWN_DATA[known[-1]][0] if known else Path(name).name


def _link_dataset(dataset: dict[str, Any]) -> str:
    name = dataset["name"]
    if not _is_hub_id(name):
        return _dataset_name(name) if _known_data(name) else f"a folder of images, {_code(Path(name).name)}"
    config = f" ({_code(dataset['config'])})" if dataset.get("config") else ""
    return f"[{_dataset_name(name)}](https://huggingface.co/datasets/{name}){config}"


def _describe_origin(base_model: str | None, dataset: dict[str, Any]) -> str:
    if not dataset.get("name"):
        return f"fine-tuned from {_link(base_model)}" if base_model else ""
    start = f"fine-tuned from {_link(base_model)}" if base_model else "trained from scratch"
    return f"{start} on {_link_dataset(dataset)}"


def _eval_result(key: str, value: float, dataset: dict[str, Any]) -> EvalResult:
    name, metric = METRICS[key]
    return EvalResult(
        task_type=TASK,
        task_name="Image Classification",
        dataset_type=_dataset_type(dataset["name"]),
        dataset_name=_dataset_name(dataset["name"]),
        dataset_config=dataset.get("config"),
        dataset_split=dataset.get("split"),
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 4),
    )


def _dataset_type(name: str) -> str:
    if _is_hub_id(name):
        return name
    return "digits" if "digits" in _known_data(name) else "imagefolder"


def _format_metric(metric: str, value: float) -> str:
    return f"{value:.2%}".replace("%", " %") if metric in ("accuracy", "ece") else f"{value:.4f}"


def _describe_measurement(dataset: dict[str, Any]) -> str:
    images = f"{dataset['num_images']:,} images" if dataset.get("num_images") else "the images"
    split = f" of the split {_code(dataset['split'])}" if dataset.get("split") else " held back from training"
    return images + split + (f" of {_link_dataset(dataset)}" if dataset.get("name") else "")


def _find_extremes(per_class: list[dict[str, Any]]) -> list[str]:
    """Return the lowest and the highest accuracy of a class, where there are at least two."""
    measured = sorted((entry for entry in per_class if _is_number(entry.get("accuracy"))), key=lambda e: e["accuracy"])
    if len(measured) < 2:
        return []
    return [
        f"{_format_metric('accuracy', entry['accuracy'])} ({_code(entry['label'])}, {entry['num_images']:,} images)"
        for entry in (measured[0], measured[-1])
    ]


def _describe_labels(config: MixerConfig) -> str:
    names = [config.id2label[index] for index in range(config.num_labels)]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return f"The {config.num_labels:,} labels have no names, only numbers."
    if len(names) <= MAX_LABELS:
        return ", ".join(map(_code, names))
    shown = ", ".join(map(_code, names[:10]))
    return f"{shown} and {len(names) - 10:,} more, all of them in `config.json`."


def _size(size: Any) -> str:
    return f"{size['height']} x {size['width']} pixels"


def _describe_preprocessing(processor: MixerImageProcessorPil) -> str:
    """Say in words what the image processor does, in the order in which it does it."""
    steps = []
    if processor.do_convert_rgb:
        steps.append(f"converted to {'RGB' if processor.num_channels == 3 else 'grey'}, transparency on white")
    if processor.do_resize:
        resample = PILImageResampling(processor.resample).name.lower()
        size = dict(processor.size)
        target = f"a shorter side of {size['shortest_edge']} pixels" if "shortest_edge" in size else _size(size)
        steps.append(f"resized to {target} ({resample})")
    if processor.do_center_crop:
        steps.append(f"cropped to the {_size(dict(processor.crop_size))} in their center")
    if processor.do_rescale:
        steps.append(f"divided by {1 / processor.rescale_factor:g}")
    if processor.do_normalize:
        mean, std = (
            ", ".join(f"{value:g}" for value in dict.fromkeys(values))
            for values in (processor.image_mean, processor.image_std)
        )
        steps.append(f"normalized with mean {mean} and standard deviation {std}")
    return "; ".join(steps) or "taken as they are"


def _format_macs(macs: int) -> str:
    return f"{macs / 1e9:.1f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def _describe_architecture(config: MixerConfig) -> list[tuple[str, str]]:
    with torch.device("meta"):
        num_parameters = MixerForImageClassification(config).num_parameters()
    patch_height, patch_width = to_pair(config.patch_size)
    rows, columns = config.grid
    return [
        ("parameters", f"{num_parameters:,}"),
        ("multiply-accumulates per image", _format_macs(estimate_flops(config) // 2)),
        ("layers", f"{config.num_hidden_layers}"),
        ("hidden size", f"{config.hidden_size}"),
        ("patches", f"{rows} x {columns} of {patch_height} x {patch_width} pixels"),
        ("width of the token-mixing MLPs", f"{config.token_mlp_dim}"),
        ("width of the channel-mixing MLPs", f"{config.channel_mlp_dim}"),
        ("activation", _code(config.hidden_act)),
    ]


def _remove_tokens(command: str) -> str:
    """Return `command` without access tokens."""
    return re.sub(r"\s--\w*token[= ]\S+|\bhf_\w{20,}", "", command)


def _describe_training(run: dict[str, Any]) -> list[tuple[str, str]]:
    dataset, versions = run.get("dataset") or {}, run.get("versions") or {}
    duration = run.get("duration_seconds")
    hours, minutes = divmod(round((duration or 0) / 60), 60)
    facts = {
        "data": _link_dataset(dataset) if dataset.get("name") else None,
        "training images": f"{dataset['num_train_images']:,}" if dataset.get("num_train_images") else None,
        "validation images": f"{dataset['num_eval_images']:,}" if dataset.get("num_eval_images") else None,
        "hardware": _plain(run["hardware"]) if run.get("hardware") else None,
        "processes": f"{run['num_processes']}" if (run.get("num_processes") or 1) > 1 else None,
        "duration": (
            None
            if not duration
            else f"{duration:.0f} s"
            if duration < 120
            else f"{hours} h {minutes} min".removeprefix("0 h ")
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None,
    }
    return [(name, value) for name, value in facts.items() if value]


def is_untouched_template(card: ModelCard) -> bool:
    """Whether nobody has written into the card that `push_to_hub` of transformers makes where it finds none."""

    def lines(text: str) -> list[str]:
        # All but the one sentence that transformers puts in
        return [line.strip() for line in text.splitlines() if line.strip() and "automatically generated" not in line]

    template = ModelCard.from_template(ModelCardData(), model_description="automatically generated")
    return lines(card.text) == lines(template.text)


def attach_card() -> None:
    """
    Let `MixerForImageClassification.push_to_hub` write the card of this package, where the repository has none yet. Done
    by `import hf_mixer`.
    """
    upload = MixerForImageClassification._upload_modified_files

    def upload_with_card(self, working_dir, repo_id, *args, **kwargs):
        path = Path(working_dir) / "README.md"
        if path.is_file() and self.num_labels and is_untouched_template(ModelCard.load(path)):
            card = create_card(working_dir, repo_id, needs_processor=False)
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(ModelCard.load(path).data.tags or [])]))
            card.save(path)
        return upload(self, working_dir, repo_id, *args, **kwargs)

    setattr(MixerForImageClassification, "_upload_modified_files", upload_with_card)  # noqa: B010


__all__ = ["attach_card", "create_card"]
