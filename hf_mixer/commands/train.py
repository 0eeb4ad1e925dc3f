# SPDX-License-Identifier: Apache-2.0
"""
Train or fine-tune an MLP-Mixer on labelled images.

    python scripts/train.py --output_dir outputs/digits                              # the embedded digits
    python scripts/train.py --train_dir photos --variant S/16 --output_dir outputs/photos
    accelerate launch scripts/train.py --dataset_name uoft-cs/cifar10 --variant cifar10 --output_dir outputs/cifar10

The output folder holds the model, its image processor, its code, its labels and the metrics, ready for
`pipeline("image-classification", folder)`.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

import transformers
from transformers import set_seed
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .. import MixerConfig, MixerForImageClassification, MixerImageProcessor, MixerImageProcessorPil, load_checkpoint
from ..data.datasets import load_image_dataset, prepare_image_dataset, prepare_streamed_dataset
from ..data.images import ImageDataError, ImageTransform, collate_images
from ..data.loaders import CachedImages, NamedRows, StreamedImages
from ..publishing.card import create_card
from ..training import MixerTrainer, MixerTrainingArguments, TrainingError
from ..training.arguments import default_num_workers
from ..training.checkpointing import find_last_checkpoint, is_complete_checkpoint
from ..training.command_line import (
    REGULARIZATION_FIELDS,
    SHAPE_FIELDS,
    DataTrainingArguments,
    ModelArguments,
    parse_arguments,
)
from ..training.curves import TrainingCurvesCallback
from ..training.record import write_training_run
from ..utils import end_together, one_line_errors


RECIPES = Path(__file__).parent / "recipes"


def check_output_dir(training_args: MixerTrainingArguments) -> str | None:
    """Refuse to write over a model, and return the checkpoint to go on from, if any was asked for."""
    output_dir, resume = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1", "yes"):
        resume = find_last_checkpoint(output_dir)
        if resume is None:
            raise ValueError(f"output_dir {output_dir} holds no complete checkpoint to resume from")
    elif resume is not None and not is_complete_checkpoint(resume):
        raise ValueError(f"{resume} is no complete checkpoint of a training run")
    if resume is None and output_dir.exists():
        found = [
            path.name
            for pattern in ("config.json", "*.safetensors", "checkpoint-*")
            for path in output_dir.glob(pattern)
        ]
        if found:
            raise ValueError(
                f"output_dir {output_dir} already holds a model ({', '.join(sorted(found)[:3])}): choose another, "
                "remove it, or go on with --resume_from_checkpoint true"
            )
    return resume


def build_model(model_args: ModelArguments, labels: list[str]):
    """Return the model and its image processor."""
    id2label = dict(enumerate(labels))
    label2id = {label: index for index, label in id2label.items()}
    overrides: dict[str, Any] = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name in SHAPE_FIELDS + REGULARIZATION_FIELDS
        if (value := getattr(model_args, name)) is not None
    }
    hub_kwargs: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}

    if model_args.model_name_or_path is None:
        config = MixerConfig.from_variant(model_args.variant, id2label=id2label, label2id=label2id, **overrides)
        model = MixerForImageClassification(config)
    else:
        fixed = [name for name in SHAPE_FIELDS if name in overrides and name != "image_size"]
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot be set for a pretrained model, only from scratch")
        model, image_processor = load_checkpoint(
            model_args.model_name_or_path,
            id2label=id2label,
            revision=model_args.model_revision,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub_kwargs,
            **overrides,
        )
        if model_args.image_processor_name is None:
            return model, image_processor

    if model_args.image_processor_name is not None:
        return model, AutoImageProcessor.from_pretrained(model_args.image_processor_name, **hub_kwargs)
    processor_class = MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil
    height, width = model.mixer.embeddings.patch_embeddings.image_size
    return model, processor_class(size={"height": height, "width": width}, num_channels=model.config.num_channels)


def compute_accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}


def load_data(model_args: ModelArguments, data_args: DataTrainingArguments, training_args: MixerTrainingArguments):
    """Return the splits `train` and `validation`, and the names of the labels."""
    dataset = load_image_dataset(
        data_args.dataset_name,
        data_args.dataset_config_name,
        data_args.train_dir,
        data_args.validation_dir,
        streaming=data_args.streaming,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
    )
    columns = (data_args.image_column_name, data_args.label_column_name)
    seed, eval_split = training_args.seed, data_args.eval_split
    if data_args.streaming:
        dataset, labels = prepare_streamed_dataset(
            dataset, *columns, seed=seed, eval_split=eval_split, max_train_samples=data_args.max_train_samples
        )
        if data_args.max_eval_samples is not None:
            dataset["validation"] = dataset["validation"].take(data_args.max_eval_samples)
        return dataset, labels
    dataset, labels = prepare_image_dataset(dataset, *columns, data_args.train_val_split, seed, eval_split)
    for split, limit in (("train", data_args.max_train_samples), ("validation", data_args.max_eval_samples)):
        if limit is not None:
            shuffled = dataset[split].shuffle(seed=seed)
            dataset[split] = shuffled.select(range(min(limit, len(shuffled))))
    return dataset, labels


def build_transforms(image_processor, training_args: MixerTrainingArguments, train_image_size: int | None):
    """Return what decodes and resizes the images of both splits. Pixels stay uint8 until they are on the device."""
    as_uint8 = {"do_rescale": False, "do_normalize": False}
    evaluation = ImageTransform(image_processor, **as_uint8)
    if train_image_size is None and training_args.random_resized_crop:
        train_image_size = round(max(evaluation_size(image_processor)) * 8 / 7)
    if train_image_size is None:
        return evaluation, evaluation
    square = {"height": train_image_size, "width": train_image_size}
    size = {"size": {"shortest_edge": train_image_size}, "do_center_crop": True, "crop_size": square}
    return ImageTransform(image_processor, **as_uint8, **size), evaluation


def evaluation_size(image_processor) -> tuple[int, int]:
    """Return the height and width of prepared images."""
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    return size["height"], size["width"]


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


def prepare(arguments: list[str] | None):
    """Everything before the first step, in which the user's input can still be refused."""
    model_args, data_args, training_args = parse_arguments(RECIPES, __doc__, arguments)

    logging.basicConfig(format="%(message)s", level=logging.INFO if training_args.should_log else logging.WARNING)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())

    checkpoint = check_output_dir(training_args) if training_args.do_train else None
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="loading the data"):
        dataset, labels = load_data(model_args, data_args, training_args)
    model, image_processor = build_model(model_args, labels)

    transforms = build_transforms(image_processor, training_args, data_args.train_image_size)
    splits = dict(zip(("train", "validation"), transforms))
    for split, transform in splits.items():
        if data_args.streaming and split == "train":
            set_stream_length(dataset, training_args, data_args.max_train_samples)
            process = (training_args.process_index, training_args.world_size)
            splits[split] = StreamedImages(dataset[split], transform, *process)
        elif data_args.streaming:
            splits[split] = StreamedImages(dataset[split], transform, num_passes=1)
        elif training_args.cache_images == "none":
            splits[split] = NamedRows(dataset[split].with_transform(transform))
        else:
            device = training_args.device if training_args.cache_images == "device" else "cpu"
            splits[split] = CachedImages(dataset[split], transform, device, default_num_workers())

    trainer = MixerTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collate_images,
        compute_metrics=compute_accuracy,
        processing_class=image_processor,
        callbacks=[TrainingCurvesCallback()],
        write_card=create_card,
    )
    description = {
        "dataset": {
            "name": data_args.dataset_name or data_args.train_dir or "scikit-learn digits",
            "config": data_args.dataset_config_name,
            "train_split": "train",
            "eval_split": data_args.eval_split or "validation",
            "num_train_images": None if data_args.streaming else len(dataset["train"]),
            "num_eval_images": None if data_args.streaming else len(dataset["validation"]),
        },
        "recipe": data_args.recipe,
        "base_model": model_args.model_name_or_path,
    }
    return trainer, checkpoint, description


def run(arguments: list[str] | None) -> None:
    with one_line_errors():
        trainer, checkpoint, description = prepare(arguments)

    training_args = trainer.args
    with one_line_errors((TrainingError, ImageDataError, OSError)):
        if training_args.do_train:
            result = trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()
            trainer.log_metrics("train", result.metrics)
            trainer.save_metrics("train", result.metrics)
            trainer.save_state()
            if trainer.is_world_process_zero():
                write_training_run(trainer, result.metrics, **description)
        if training_args.do_eval:
            metrics = trainer.evaluate()
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)

    if training_args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    accelerator = trainer.accelerator
    del trainer  # it holds the group of processes that ends now
    end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(arguments)
