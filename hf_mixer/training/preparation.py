# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a run to its data and its model."""

import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from ..configuration_mixer import MixerConfig
from ..data.datasets import load_evaluation_dataset, load_image_dataset, prepare_image_dataset
from ..data.images import ImageConversion, ImageTransform, find_image_format
from ..data.labels import (
    REGRESSION,
    SINGLE_LABEL,
    encode_labels,
    find_problem_type,
    is_missing,
    problem_type_of,
)
from ..data.loaders import CachedImages, NamedRows, StreamedImages
from ..data.model_labels import match_labels, use_model_labels
from ..evaluation.metrics import METRICS
from ..evaluation.results import DIGITS, fingerprint_files, is_same_name, read_training_data
from ..local_paths import name_source
from .arguments import MixerTrainingArguments
from .balance import count_classes
from .command_line import DataTrainingArguments, ModelArguments
from .models import build_model, load_teacher, load_trained_model
from .objective import SPECIFIC_ARGUMENTS


logger = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """What a run works with."""

    # The splits `validation`, `train` where there is a training, and `test` where it is predicted; labels prepared
    dataset: Any
    labels: list[str]
    problem_type: str
    model: Any
    image_processor: Any
    conversion: ImageConversion
    # Where the model comes from, unless it starts from scratch
    base_model: str | None = None
    # Arguments of the recipe that were changed, because the labels do not allow them
    changed: list[str] = field(default_factory=list)
    num_skipped_images: int = 0
    # The model that the model learns from, too
    teacher: Any = None
    teacher_image_processor: Any = None
    # Whether all images of `test` have a label
    has_test_labels: bool = False


def prepare_run(
    model_args: ModelArguments, data_args: DataTrainingArguments, training_args: MixerTrainingArguments
) -> PreparedRun:
    """
    Load the data and build the model, or load the one to evaluate.

    Raises:
        `ValueError`: the arguments, the data and the model do not go together.
    """
    conversion = ImageConversion(data_args.flatten_transparency, data_args.scale_16_bit)
    if model_args.teacher_model is not None and not training_args.do_train:
        raise ValueError("--teacher_model is for training: leave it out to evaluate")
    if training_args.do_train:
        with training_args.main_process_first(desc="loading the data"):
            dataset, labels, num_skipped = load_data(model_args, data_args, training_args, data_args.problem_type)
        problem_type = find_problem_type(dataset["train"].features["label"])
        changed = fit_to_labels(data_args, training_args, problem_type)
        model, image_processor = build_model(model_args, labels, problem_type)
        source = model_args.model_name_or_path
    else:
        changed, source = [], find_trained_model(model_args, training_args)
        check_evaluation_source(source, data_args)
        warn_of_conversion(source, conversion)
        model, image_processor = load_trained_model(source, model_args)
        problem_type = problem_type_of(model.config)
        with training_args.main_process_first(desc="loading the data"):
            dataset, labels, num_skipped = load_data(
                model_args, data_args, training_args, data_args.problem_type or problem_type
            )
        dataset = use_labels_of_model(dataset, labels, model.config)
    run = PreparedRun(dataset, labels, problem_type, model, image_processor, conversion, source, changed, num_skipped)
    if model_args.teacher_model is not None:
        run.teacher, run.teacher_image_processor = load_teacher(model_args.teacher_model, model_args, model)
    elif "distillation_alpha" in data_args.given:
        raise ValueError(
            "--distillation_alpha is the weight of a teacher in the training: name it with --teacher_model"
        )
    elif training_args.do_train and training_args.distillation_alpha != MixerTrainingArguments.distillation_alpha:
        logger.warning(
            "The recipe is for a model that learns from another one, and --teacher_model names none: this one learns from the "
            "labels alone"
        )
    if training_args.do_predict:
        if "test" not in dataset:
            raise ValueError(
                "--do_predict predicts a split `test`, which the data does not have: give a data set with one, or a folder "
                "`test` beside `train` in --dataset_name"
            )
        run.has_test_labels = not any(map(is_missing, dataset["test"]["label"][:]))
        if not run.has_test_labels:
            dataset["test"] = with_label(dataset["test"], dataset["validation"]["label"][0])
    return run


def find_trained_model(model_args: ModelArguments, training_args: MixerTrainingArguments) -> str:
    """Return the model to evaluate without training: the one that is named, or the one in the output folder."""
    if model_args.model_name_or_path is not None:
        return model_args.model_name_or_path
    if (Path(training_args.output_dir) / "config.json").is_file():
        return training_args.output_dir
    raise ValueError(
        f"there is no trained model in --output_dir {training_args.output_dir}: name one with --model_name_or_path, or "
        "train one with --do_train true"
    )


def check_evaluation_source(source: str, data_args: DataTrainingArguments) -> None:
    """Refuse to evaluate on a stream, or on data that nobody named: the digits are for a model that was trained on them."""
    if data_args.streaming:
        raise ValueError("--streaming is for training: leave it out to evaluate")
    if data_args.source is None and read_training_data(source).get("name") != DIGITS:
        raise ValueError(
            "there is no data to evaluate on: name it with --validation_dir, --validation_file, --train_dir, --train_file "
            "or --dataset_name"
        )


def warn_of_conversion(source: str, conversion: ImageConversion) -> None:
    """Say that a model was trained with other pixels, where its record knows of another conversion."""
    recorded = read_training_data(source)
    before = recorded.get("image_conversion") or {}
    if recorded and before != conversion.options():
        options = " ".join(f"--{name} {str(value).lower()}" for name, value in before.items())
        way = f"with {options}" if options else "without --flatten_transparency and --scale_16_bit"
        logger.warning(f"The model was trained {way}: here it sees transparent or 16-bit images otherwise")


def load_data(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training_args: MixerTrainingArguments,
    problem_type: str | None,
):
    """
    Return the splits `train`, `validation` and, where there is one, `test`; the names of the labels; and how many images
    cannot be read and were left out.
    """
    eval_split = data_args.eval_split
    hub: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    # Without a training, the data to evaluate on is enough
    is_enough = data_args.source is not None and data_args.source in (
        data_args.validation_dir,
        data_args.validation_file,
    )
    if not training_args.do_train and is_enough:
        data, _ = load_evaluation_dataset(
            eval_dir=data_args.validation_dir,
            eval_file=data_args.validation_file,
            image_column_name=data_args.image_column_name,
            **hub,
        )
        dataset = DatasetDict({"train": data, "validation": data})
    else:
        dataset = load_image_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            data_args.train_dir,
            data_args.validation_dir,
            train_file=data_args.train_file,
            validation_file=data_args.validation_file,
            streaming=data_args.streaming,
            skip_unreadable_images=data_args.skip_unreadable_images,
            image_column_name=data_args.image_column_name,
            check_test=training_args.do_predict or eval_split == "test",
            **hub,
        )
    num_skipped = getattr(dataset, "num_skipped_images", 0)
    if training_args.do_predict and eval_split in dataset and "test" in dataset:
        # Otherwise the split `test` would be left out
        dataset = DatasetDict({"train": dataset["train"], "validation": dataset[eval_split], "test": dataset["test"]})
        eval_split = None
    columns = data_args.label_column_name
    prepared, labels = prepare_image_dataset(
        dataset,
        image_column_name=data_args.image_column_name,
        label_column_name=columns[0] if columns is not None and len(columns) == 1 else columns,
        train_val_split=data_args.train_val_split,
        seed=training_args.seed,
        eval_split=eval_split,
        max_train_samples=data_args.max_train_samples,
        max_eval_samples=data_args.max_eval_samples,
        problem_type=problem_type,
    )
    return prepared, labels, num_skipped


def fit_to_labels(
    data_args: DataTrainingArguments, training_args: MixerTrainingArguments, problem_type: str
) -> list[str]:
    """
    Change what the recipe says and the kind of the labels does not go with. What the command line says stays, and is
    refused where it does not fit.

    Returns:
        `list[str]`: the names of the arguments that were changed.
    """
    metrics, best = METRICS[problem_type], training_args.metric_for_best_model
    if best is not None and "metric_for_best_model" not in data_args.given:
        if best.removeprefix("eval_") not in (*metrics, "loss"):
            training_args.metric_for_best_model = next(iter(metrics))
            training_args.greater_is_better = metrics[training_args.metric_for_best_model].greater_is_better
    changed = []
    for name, (neutral, problem_types) in SPECIFIC_ARGUMENTS.items():
        is_unfit = problem_type not in problem_types and getattr(training_args, name) != neutral
        if is_unfit and name not in data_args.given:
            setattr(training_args, name, neutral)
            changed.append(name)
    return changed


def use_labels_of_model(dataset: DatasetDict, labels: list[str], config: MixerConfig) -> DatasetDict:
    """
    Return the splits to evaluate on, with their prepared labels matched by name to those of the model.

    Raises:
        `ValueError`: the model does not have some of the labels, or the data not all outputs of a regression.
    """
    splits = {name: data for name, data in dataset.items() if name != "train"}
    if problem_type_of(config) == SINGLE_LABEL:
        return DatasetDict({name: use_model_labels(data, config) for name, data in splits.items()})
    model_labels = [config.id2label[index] for index in range(config.num_labels)]
    places = match_labels(range(len(labels)), model_labels, labels)
    if problem_type_of(config) == REGRESSION and len(places) < len(model_labels):
        missing = next(name for place, name in enumerate(model_labels) if place not in places.values())
        raise ValueError(
            f"the data has no column {missing!r}, which the model estimates: name it in --label_column_name"
        )

    def rearrange(values: list | None) -> list | None:
        if values is None:
            return None
        arranged = [False] * len(model_labels)
        for label, place in places.items():
            arranged[place] = values[int(label)]
        return arranged

    return DatasetDict({name: encode_labels(data, rearrange, data.features["label"]) for name, data in splits.items()})


def with_label(dataset, label):
    """Return a split in which all images have the same label."""
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", [label] * len(dataset), feature=feature)


def build_transforms(
    run: PreparedRun, data_args: DataTrainingArguments, training_args: MixerTrainingArguments
) -> dict[str, ImageTransform]:
    """Return, by split, what decodes and resizes the images. Pixels stay uint8 until they are on the device."""
    image_processor = run.image_processor
    as_uint8: dict[str, Any] = {"conversion": run.conversion, "do_rescale": False, "do_normalize": False}
    transforms = dict.fromkeys(("train", "validation", "test"), ImageTransform(image_processor, **as_uint8))
    train_image_size = data_args.train_image_size
    if train_image_size is None and training_args.random_resized_crop:
        size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
        train_image_size = round(max(size["height"], size["width"]) * 8 / 7)
    if train_image_size is not None:
        square = {"height": train_image_size, "width": train_image_size}
        size = {"size": {"shortest_edge": train_image_size}, "do_center_crop": True, "crop_size": square}
        transforms["train"] = ImageTransform(image_processor, **as_uint8, **size)
    return transforms


def build_datasets(
    dataset, transforms: dict[str, ImageTransform], training_args: MixerTrainingArguments, streaming: bool
) -> dict[str, Any]:
    """Return, by split, the data as the trainer reads it: streamed, cached, or decoded while it trains."""
    splits: dict[str, Any] = {}
    for split, transform in transforms.items():
        if split not in dataset or (split == "test" and not training_args.do_predict):
            continue
        if streaming and split == "train":
            process = (training_args.process_index, training_args.world_size)
            splits[split] = StreamedImages(dataset[split], transform, *process)
        elif streaming:
            splits[split] = StreamedImages(dataset[split], transform, num_passes=1)
        elif training_args.cache_images == "none":
            splits[split] = NamedRows(dataset[split].with_transform(transform))
        else:
            device = training_args.device if training_args.cache_images == "device" else "cpu"
            splits[split] = CachedImages(dataset[split], transform, device)
    return splits


def set_stream_length(dataset, training_args: MixerTrainingArguments, max_train_samples: int | None) -> None:
    """Turn epochs into steps, where the data set says how many images it streams."""
    splits = dataset["train"].info.splits or {}
    counts = [max_train_samples, splits["train"].num_examples if "train" in splits else None]
    count = min((count for count in counts if count), default=None)
    images_per_step = training_args.train_batch_size * training_args.world_size
    images_per_step *= training_args.gradient_accumulation_steps
    by_epoch = [name for name in ("save", "eval", "logging") if getattr(training_args, f"{name}_strategy") == "epoch"]
    if count is None and training_args.max_steps <= 0:
        raise ValueError("the length of the data stream is not known: give --max_steps")
    if count is None and by_epoch:
        raise ValueError(
            "the length of the data stream is not known, nor when an epoch ends: give "
            + " and ".join(f"--{name}_strategy steps --{name}_steps N" for name in by_epoch)
        )
    if training_args.max_steps <= 0:
        training_args.max_steps = math.ceil(training_args.num_train_epochs * count / images_per_step)
    for name in by_epoch:
        setattr(training_args, f"{name}_strategy", type(getattr(training_args, f"{name}_strategy"))("steps"))
        setattr(training_args, f"{name}_steps", math.ceil(count / images_per_step))


def describe_dataset(run: PreparedRun, data_args: DataTrainingArguments) -> dict[str, Any]:
    """Return what the record of a run says of its data."""
    dataset, is_stream = run.dataset, data_args.streaming
    description: dict[str, Any] = {
        "name": name_source(data_args.source) if data_args.source else DIGITS,
        "config": data_args.dataset_config_name,
        "train_split": "train",
        "eval_split": data_args.eval_split or "validation",
        "num_train_images": None if is_stream or "train" not in dataset else len(dataset["train"]),
        "num_eval_images": None if is_stream else len(dataset["validation"]),
        "eval_image_format": None if is_stream else find_image_format(dataset["validation"]),
        "problem_type": run.problem_type,
    }
    if data_args.source and os.path.exists(data_args.source):
        description["fingerprint"] = fingerprint_files(data_args.source)
    if run.num_skipped_images:
        description["num_skipped_images"] = run.num_skipped_images
    if not is_stream and "train" in dataset and run.problem_type != REGRESSION:
        description["class_counts"] = count_classes(read_labels(dataset["train"]), run.labels)
    if run.conversion.options():
        description["image_conversion"] = run.conversion.options()
    return description


def read_labels(dataset) -> np.ndarray:
    """Return all labels of a split in prepared form: an array of shape `(num_images,)` or `(num_images, num_labels)`."""
    return np.asarray(dataset["label"][:])


def check_results(output_dir: str, description: dict[str, Any]) -> None:
    """
    Refuse to replace the results of a trained folder by those on other data.

    Raises:
        `ValueError`: the record in `output_dir` names other data, or another number or conversion of images, than
            `description`.
    """
    recorded = read_training_data(output_dir)
    for key in ("name", "config", "eval_split", "num_eval_images", "image_conversion"):
        before, here = recorded.get(key), description.get(key)
        if recorded and not (before == here or (key == "name" and is_same_name(description["name"], before))):
            raise ValueError(
                f"--output_dir {output_dir} holds a model with results on other data ({key} {before}, here {here}): "
                f"choose another --output_dir, and name the model with --model_name_or_path"
            )
