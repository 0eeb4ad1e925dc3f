# SPDX-License-Identifier: Apache-2.0
"""The model card of a folder, written from what the folder says happened."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_mixer import MixerConfig
from ..data.labels import problem_type_of
from ..evaluation.metrics import METRICS, Metric
from ..evaluation.results import EXAMPLES
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import (
    MixerBackbone,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerModel,
    MixerPreTrainedModel,
)
from ..utils import find_home_page, is_hub_id, list_requirements, read_json
from .example_answer import answer_example
from .exports import HANDLER_NAME, describe_exports
from .merging import sign_card
from .records import read_results
from .wording import (
    dataset_name,
    dataset_type,
    describe_choices,
    describe_conversion,
    describe_extremes,
    describe_measurement,
    describe_model,
    describe_training,
    describe_validation,
    describe_weights,
    find_known_data,
    format_interval,
    format_metric,
    is_number,
    plain,
)


TEMPLATE = Path(__file__).parent / "TEMPLATE.md"
# What of the requirements of this package does not come along with the others
INSTALLED = ("pillow", "torch", "transformers")
# What the template says until the owner says more
NO_PURPOSE = "*The author has not said yet what it is meant for.*"
LOSS = Metric("loss", "loss", greater_is_better=False, is_share=False)


class Kind(NamedTuple):
    """A class of models: what the template calls it, and the task that the Hub lists it under and pipelines load it for."""

    name: str
    model_class: type[MixerPreTrainedModel]
    task: str


KINDS = {
    kind.model_class.__name__: kind
    for kind in (
        Kind("classifier", MixerForImageClassification, "image-classification"),
        Kind("model", MixerModel, "image-feature-extraction"),
        Kind("backbone", MixerBackbone, "image-feature-extraction"),
        Kind("masked", MixerForMaskedImageModeling, "image-feature-extraction"),
    )
}
# What the pictures show, by the names under which training and evaluation leave them; those of the results first
PICTURES = {
    "predictions.png": "Right and wrong predictions",
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
    license: str | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """
    Write the model card of a folder.

    It says what config.json, preprocessor_config.json, training_run.json, evaluation.json (else eval_results.json) and
    the pictures beside them say, and what the model answers about the example image. What is not there, the card does not
    mention. Its generated parts stand between marks, so that [`~hf_mixer.publishing.save_card`] can renew them later.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that holds a Mixer of any class and its image processor.
        repo_id (`str`, *optional*):
            The repository on the Hub that the examples load. By default they load `folder`, with this package.
        revision (`str`, *optional*):
            The commit, tag or branch that they load.
        release (`Path`, *optional*):
            The files that go to `repo_id`. The card says how the exports and the handler among them are used.
        license (`str`, *optional*):
            The licence, as the [Hub calls it](https://huggingface.co/docs/hub/repositories-licenses). By default the card
            names none.
        base_model (`str`, *optional*):
            The model on the Hub that this one descends from. By default the one that the training started from.

    Returns:
        `huggingface_hub.ModelCard`: neither saved nor pushed yet.

    Raises:
        `ValueError`: the folder holds no model or no image processor, or one of the files is damaged.
    """
    folder = Path(folder)
    kind, config, processor = read_folder(folder)
    problem_type = problem_type_of(config) if kind.name == "classifier" else None
    run = read_results(folder / "training_run.json")
    run |= {"base_model": base_model} if base_model else {}
    evaluation = read_results(folder / "evaluation.json")
    trained_on = run.get("dataset") or {}
    names = {"split": "eval_split", "num_images": "num_eval_images", "image_format": "eval_image_format"}
    validated_on = {**trained_on, **{name: trained_on.get(key) for name, key in names.items()}}
    if evaluation:
        measured, measured_on = evaluation, evaluation.get("dataset") or {}
        measurement = describe_measurement(measured_on)
    else:
        results = read_results(folder / "eval_results.json")
        measured = {key.removeprefix("eval_"): value for key, value in results.items()}
        measured_on, measurement = validated_on, describe_validation(validated_on)
    is_validation = all(measured_on.get(key) == validated_on.get(key) for key in ("name", "split"))
    metrics = [
        (metric, measured[key])
        for key, metric in {**METRICS.get(problem_type or "", {}), "loss": LOSS}.items()
        if is_number(measured.get(key))
    ]
    name = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    exports = describe_exports(release) if release else []
    example = next((file for file in EXAMPLES if (folder / file).is_file()), None) if problem_type else None
    num_images = measured_on.get("num_images")
    label = (evaluation.get("example") or {}).get("label")
    example_title = label if isinstance(label, str) else "Example"

    metadata = create_metadata(name, kind, problem_type, run, metrics, measured_on)
    # The Hub would tell readers of `transformers.js` to load the files beside the weights, which it cannot
    formats = [export["folder"] for export in exports if export["folder"] != "transformers.js"]
    metadata |= {"license": license, "tags": [*metadata["tags"], *formats]}
    if repo_id:
        metadata["tags"].append("custom_code")
    if repo_id and example:
        address = f"https://huggingface.co/{repo_id}/resolve/{quote(revision or 'main', safe='')}/{example}"
        metadata["widget"] = [{"src": address, "example_title": example_title}]
    card = ModelCard.from_template(
        ModelCardData(**metadata),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=plain(name),
        no_purpose=NO_PURPOSE,
        requirements=" ".join(f'"{line}"' for line in list_requirements() if line.startswith(INSTALLED)),
        kind=kind.name,
        task=kind.task,
        problem_type=problem_type,
        **describe_source(folder, repo_id, revision),
        **describe_model(config, processor, kind.model_class),
        **describe_training(run),
        weights=describe_weights(folder),
        results=[
            (metric.title, format_metric(metric, value, num_images) + format_interval(metric, value, num_images))
            for metric, value in metrics
        ],
        has_intervals=bool(num_images) and any(metric.is_mean_over_images for metric, _ in metrics),
        measured_on=measurement,
        measured_conversion=describe_conversion(measured_on)["conversion"],
        chosen=describe_choices(run) if is_validation else "",
        extremes=describe_extremes(problem_type, evaluation.get("per_class") or []) if problem_type else "",
        speed=[
            (what, f"{record['images_per_second']:,.0f}", plain(record["hardware"]))
            for what, record in (("training", run), ("evaluation", evaluation))
            if is_number(record.get("images_per_second")) and record.get("hardware")
        ],
        pictures={file: title for file, title in PICTURES.items() if (folder / file).is_file()},
        data=find_known_data(run.get("base_model"), trained_on.get("name"), measured_on.get("name")),
        example=example,
        example_title=plain(example_title),
        example_path=json.dumps(os.fspath(folder / example)) if example else "",
        answer=answer_example(folder, example) if example else "",
        exports=exports,
        has_handler=release is not None and (release / HANDLER_NAME).is_file(),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return ModelCard(sign_card(str(card)))


def read_folder(folder: Path) -> tuple[Kind, MixerConfig, MixerImageProcessorPil]:
    """
    Return which kind of model is in `folder` (see `KINDS`), its configuration and its image processor.

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
    architectures = read_json(folder / CONFIG_NAME).get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in KINDS:
        raise ValueError(
            f"{folder} holds no Mixer: {CONFIG_NAME} names the architectures {architectures}, expected one of "
            f"{', '.join(KINDS)}"
        )
    kind = KINDS[architectures[0]]
    config = MixerConfig.from_pretrained(folder)
    if kind.name == "classifier" and not config.num_labels:
        raise ValueError(
            f"{folder} holds no image classifier: the model in it has no labels. Save it as a MixerModel, or train it"
        )
    return kind, config, MixerImageProcessorPil.from_pretrained(folder)


def read_model(folder: Path) -> tuple[MixerConfig, MixerImageProcessorPil]:
    """
    Return the configuration of the classifier in `folder` and its image processor.

    Raises:
        `ValueError`: the folder does not hold both.
    """
    kind, config, processor = read_folder(folder)
    if kind.name != "classifier":
        raise ValueError(
            f"{folder} holds no image classifier, but a {kind.model_class.__name__}: train one that starts from it"
        )
    return config, processor


def read_base_model(folder: Path) -> str | None:
    """Return the model that the training in a folder started from."""
    return read_results(folder / "training_run.json").get("base_model")


def create_metadata(
    name: str,
    kind: Kind,
    problem_type: str | None,
    run: dict[str, Any],
    metrics: list[tuple[Metric, float]],
    measured_on: dict[str, Any],
) -> dict[str, Any]:
    """Return the metadata of the card, by which the Hub finds and compares models."""
    base_model = run.get("base_model") if is_hub_id(run.get("base_model")) else None
    datasets = {data["name"] for data in (run.get("dataset") or {}, measured_on) if is_hub_id(data.get("name"))}
    results = [
        EvalResult(
            task_type=kind.task,
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
    return {
        "library_name": "transformers",
        "pipeline_tag": kind.task,
        "datasets": sorted(datasets) or None,
        "base_model": base_model,
        # Of the Hub's relations also the closest to a resized model's, and the one that it assumes
        "base_model_relation": "finetune" if base_model else None,
        "tags": [kind.task, "vision", "mlp-mixer", *TAGS.get(problem_type or "", [])],
        "metrics": list(dict.fromkeys(metric.hub_id for metric, _ in metrics if metric != LOSS)) or None,
        "model_name": name if results else None,
        "eval_results": results or None,
    }


def describe_source(folder: Path, repo_id: str | None, revision: str | None) -> dict[str, Any]:
    """Return how the examples of the card load the model, in Python and in a shell."""
    source = repo_id or os.fspath(folder)
    pinned = revision if repo_id else None
    return {
        "source": json.dumps(source),
        "shell_source": shlex.quote(source),
        "shell_revision": f" --model_revision {shlex.quote(pinned)}" if pinned else "",
        "pinned": f", revision={json.dumps(pinned)}" if pinned else "",
        "commit": bool(pinned and re.fullmatch("[0-9a-f]{40}", pinned)),
        # `pipeline` of transformers.js 4.3 looks some files up on `main`, whatever its `revision`
        "revision_in_address": quote(pinned, safe="") if pinned else "{revision}",
        "is_on_hub": repo_id is not None,
        # Publishing adds the code. Who has the folder has this package
        "trust": ", trust_remote_code=True" if repo_id else "",
        "home": find_home_page() if repo_id else None,
    }


__all__ = ["create_card"]
