# SPDX-License-Identifier: Apache-2.0
"""The model card of a trained folder, written from what the folder says happened."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_mixer import MixerConfig
from ..data.labels import problem_type_of
from ..evaluation.metrics import METRICS, Metric
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..local_paths import without_paths
from ..modeling_mixer import MixerForImageClassification
from ..utils import is_hub_id, read_json
from .exports import HANDLER_NAME, describe_exports
from .saving import sign
from .wording import (
    dataset_name,
    dataset_type,
    describe_conversion,
    describe_extremes,
    describe_measurement,
    describe_model,
    describe_training,
    describe_validation,
    find_known_data,
    format_metric,
    is_number,
    plain,
)


TEMPLATE = Path(__file__).parent / "TEMPLATE.md"
TASK = "image-classification"
LICENSE = "apache-2.0"
LOSS = Metric("loss", "loss", greater_is_better=False, is_share=False)
# What the pictures show, by the names under which training and evaluation leave them; those of the results first
PICTURES = {
    "confusion_matrix.png": "Confusion matrix",
    "confused_pairs.png": "The labels that are confused most often",
    "per_class.png": "How good it is at each label",
    "regression.png": "Estimated and true values",
    "calibration.png": "Calibration",
    "mistakes.png": "The most confident mistakes",
    "training_curves.png": "Training curves",
}
# Tags beside those that all cards have
TAGS = {"multi_label_classification": ["multi-label"], "regression": ["regression"]}


def create_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    revision: str | None = None,
    release: Path | None = None,
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
        release (`Path`, *optional*):
            The files that go to `repo_id`. The card says how the exports and the handler among them are used.

    Returns:
        `huggingface_hub.ModelCard`: neither saved nor pushed yet.

    Raises:
        `ValueError`: the folder holds no classifier or no image processor, or one of the files is damaged.
    """
    folder = Path(folder)
    config, processor = read_model(folder)
    problem_type = problem_type_of(config)
    run = read_results(folder / "training_run.json")
    evaluation = read_results(folder / "evaluation.json")
    trained_on = run.get("dataset") or {}
    validated_on = {**trained_on, "split": trained_on.get("eval_split")}
    if evaluation:
        measured, measured_on = evaluation, evaluation.get("dataset") or {}
        measurement = describe_measurement(measured_on)
    else:
        results = read_results(folder / "eval_results.json")
        measured = {key.removeprefix("eval_"): value for key, value in results.items()}
        measured_on, measurement = validated_on, describe_validation(trained_on)
    is_validation = all(measured_on.get(key) == validated_on.get(key) for key in ("name", "split"))
    metrics = [
        (metric, measured[key])
        for key, metric in {**METRICS[problem_type], "loss": LOSS}.items()
        if is_number(measured.get(key))
    ]
    name = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    exports = describe_exports(release) if release else []

    card = ModelCard.from_template(
        create_metadata(name, problem_type, run, metrics, measured_on, [export["folder"] for export in exports]),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=plain(name),
        problem_type=problem_type,
        **describe_source(folder, repo_id, revision),
        **describe_model(config, processor),
        **describe_training(run),
        results=[(metric.title, format_metric(metric, value)) for metric, value in metrics],
        measured_on=measurement,
        measured_conversion=describe_conversion(measured_on)["conversion"],
        chose_thresholds=is_validation and (run.get("hyperparameters") or {}).get("label_threshold") == "best_f1",
        extremes=describe_extremes(problem_type, evaluation.get("per_class") or []),
        speed=[
            (what, f"{record['images_per_second']:,.0f}", plain(record["hardware"]))
            for what, record in (("training", run), ("evaluation", evaluation))
            if is_number(record.get("images_per_second")) and record.get("hardware")
        ],
        pictures={file: title for file, title in PICTURES.items() if (folder / file).is_file()},
        data=find_known_data(run.get("base_model"), trained_on.get("name"), measured_on.get("name")),
        exports=exports,
        has_handler=release is not None and (release / HANDLER_NAME).is_file(),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    sign(card)
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
    return without_paths(read_json(path)) if path.is_file() else {}


def create_metadata(
    name: str,
    problem_type: str,
    run: dict[str, Any],
    metrics: list[tuple[Metric, float]],
    measured_on: dict[str, Any],
    exports: list[str],
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
            metric_type=metric.hub_id,
            metric_name=metric.title,
            metric_value=round(value, 4) if metric.is_share else float(f"{value:.4g}"),
        )
        for metric, value in metrics
        if measured_on.get("name")
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        license=LICENSE,
        datasets=sorted(datasets) or None,
        base_model=base_model if is_hub_id(base_model) else None,
        # The Hub would tell readers of `transformers.js` to load the files beside the weights, which it cannot
        tags=[
            *(TASK, "vision", "mlp-mixer", *TAGS.get(problem_type, [])),
            *(format for format in exports if format != "transformers.js"),
        ],
        metrics=list(dict.fromkeys(metric.hub_id for metric, _ in metrics if metric != LOSS)) or None,
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
        # `pipeline` of transformers.js 4.3 looks some files up on `main`, whatever its `revision`
        "revision_in_address": quote(pinned, safe="") if pinned else "{revision}",
        "find_revision": repo_id is not None and revision is None,
        # Publishing adds the code to a folder without it
        "carries_code": repo_id is not None or any(folder.glob("*_mixer.py")),
    }


__all__ = ["create_card"]
