# SPDX-License-Identifier: Apache-2.0
"""
Train or fine-tune an MLP-Mixer on labelled images.

    hf-mixer train --output_dir outputs/digits                              # the embedded digits
    hf-mixer train --train_dir photos --variant S/16 --output_dir outputs/photos
    accelerate launch scripts/train.py --dataset_name uoft-cs/cifar10 --variant cifar10 --output_dir outputs/cifar10

The output folder holds the model, its image processor, its code, its labels and the metrics, ready for
`pipeline("image-classification", folder)`.
"""

import logging
import math
import sys
from pathlib import Path
from typing import Any


RECIPES = Path(__file__).parent / "recipes"


def parse_arguments(arguments: list[str] | None = None) -> tuple:
    """Return the command line, and its arguments on the model, the data and the training."""
    from ..training.command_line import parse_training_arguments
    from ..utils import one_line_errors

    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        return (arguments, *parse_training_arguments(RECIPES, __doc__, arguments))


def check_output_dir(training_args) -> str | None:
    """Refuse to write over a model, and return the checkpoint to go on from, if any was asked for."""
    from ..training.checkpointing import find_checkpoint_to_resume

    output_dir, resume = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1", "yes"):
        resume = True
    resume = find_checkpoint_to_resume(output_dir, resume)
    if resume is None and output_dir.exists():
        patterns = ("config.json", "*.safetensors", "checkpoint-*")
        found = sorted(path.name for pattern in patterns for path in output_dir.glob(pattern))
        if found:
            raise ValueError(
                f"output_dir {output_dir} already holds a model ({', '.join(found[:3])}): choose another, remove it, or go "
                "on with --resume_from_checkpoint true"
            )
    return resume


def load_data(model_args, data_args, seed: int):
    """Return the splits `train` and `validation`, and the names of the labels."""
    from ..data.datasets import load_image_dataset, prepare_image_dataset

    dataset = load_image_dataset(
        data_args.dataset_name,
        data_args.dataset_config_name,
        data_args.train_dir,
        data_args.validation_dir,
        streaming=data_args.streaming,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
    )
    return prepare_image_dataset(
        dataset,
        image_column_name=data_args.image_column_name,
        label_column_name=data_args.label_column_name,
        train_val_split=data_args.train_val_split,
        seed=seed,
        eval_split=data_args.eval_split,
        max_train_samples=data_args.max_train_samples,
        max_eval_samples=data_args.max_eval_samples,
    )


def build_model(model_args, labels: list[str]):
    """Return the model and its image processor: a pretrained one, or a variant from scratch."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import is_torchvision_available

    from ..checkpoints import load_checkpoint
    from ..checkpoints.loading import SHAPE_FIELDS
    from ..configuration_mixer import MixerConfig, to_pair
    from ..image_processing_mixer import MixerImageProcessor
    from ..image_processing_pil_mixer import MixerImageProcessorPil
    from ..modeling_mixer import MixerForImageClassification
    from ..training.command_line import REGULARIZATION_FIELDS

    id2label = dict(enumerate(labels))
    overrides: dict[str, Any] = {}
    for name in (*SHAPE_FIELDS, *REGULARIZATION_FIELDS):
        value = getattr(model_args, name)
        if value is not None:
            overrides[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    hub_kwargs: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}

    if model_args.model_name_or_path is None:
        label2id = {label: index for index, label in id2label.items()}
        config = MixerConfig.from_variant(model_args.variant, id2label=id2label, label2id=label2id, **overrides)
        model = MixerForImageClassification(config)
        height, width = to_pair(config.image_size)
        processor_class = MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil
        image_processor = processor_class(size={"height": height, "width": width}, num_channels=config.num_channels)
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
    if model_args.image_processor_name is not None:
        image_processor = AutoImageProcessor.from_pretrained(model_args.image_processor_name, **hub_kwargs)
    return model, image_processor


def build_transforms(image_processor, random_resized_crop: bool, train_image_size: int | None) -> dict:
    """Return, by split, what decodes and resizes the images. Pixels stay uint8 until they are on the device."""
    from ..data.images import ImageTransform

    as_uint8 = {"do_rescale": False, "do_normalize": False}
    evaluation = ImageTransform(image_processor, **as_uint8)
    if train_image_size is None and random_resized_crop:
        size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
        train_image_size = round(max(size["height"], size["width"]) * 8 / 7)
    if train_image_size is None:
        return {"train": evaluation, "validation": evaluation}
    square = {"height": train_image_size, "width": train_image_size}
    size = {"size": {"shortest_edge": train_image_size}, "do_center_crop": True, "crop_size": square}
    return {"train": ImageTransform(image_processor, **as_uint8, **size), "validation": evaluation}


def build_datasets(dataset, transforms: dict, training_args, streaming: bool) -> dict:
    """Return, by split, the data as the trainer reads it: streamed, cached, or decoded while it trains."""
    from ..data.loaders import CachedImages, NamedRows, StreamedImages

    splits: dict[str, Any] = {}
    for split, transform in transforms.items():
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


def set_stream_length(dataset, training_args, max_train_samples: int | None) -> None:
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


def compute_accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


def build_trainer(model_args, data_args, training_args):
    """Return the trainer, and what the record of the run says of its data."""
    from ..data.images import collate_images
    from ..publishing.card import create_card
    from ..training.curves import TrainingCurvesCallback
    from ..training.trainer import MixerTrainer

    with training_args.main_process_first(desc="loading the data"):
        dataset, labels = load_data(model_args, data_args, training_args.seed)
    model, image_processor = build_model(model_args, labels)
    if data_args.streaming:
        set_stream_length(dataset, training_args, data_args.max_train_samples)
    transforms = build_transforms(image_processor, training_args.random_resized_crop, data_args.train_image_size)
    splits = build_datasets(dataset, transforms, training_args, data_args.streaming)
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
        "name": data_args.dataset_name or data_args.train_dir or "scikit-learn digits",
        "config": data_args.dataset_config_name,
        "train_split": "train",
        "eval_split": data_args.eval_split or "validation",
        "num_train_images": None if data_args.streaming else len(dataset["train"]),
        "num_eval_images": None if data_args.streaming else len(dataset["validation"]),
    }
    return trainer, description


def run(parsed: tuple) -> None:
    import transformers

    from ..data.images import ImageDataError
    from ..training.checkpointing import TrainingError
    from ..training.record import describe_command, write_training_run
    from ..utils import end_together, one_line_errors

    command_line, model_args, data_args, training_args = parsed
    # Everything before the first step, in which the user's input can still be refused
    with one_line_errors():
        logging.basicConfig(format="%(message)s", level=logging.INFO if training_args.should_log else logging.WARNING)
        transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
        checkpoint = check_output_dir(training_args) if training_args.do_train else None
        transformers.set_seed(training_args.seed)
        trainer, dataset = build_trainer(model_args, data_args, training_args)

    with one_line_errors((TrainingError, ImageDataError, OSError)):
        if training_args.do_train:
            result = trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()
            trainer.log_metrics("train", result.metrics)
            trainer.save_metrics("train", result.metrics)
            trainer.save_state()
            if trainer.is_world_process_zero():
                write_training_run(
                    trainer,
                    result.metrics,
                    dataset,
                    command=describe_command(command_line),
                    recipe=data_args.recipe,
                    base_model=model_args.model_name_or_path,
                )
        if training_args.do_eval:
            metrics = trainer.evaluate()
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)

    if training_args.push_to_hub:
        trainer.push_to_hub()
    elif training_args.do_train:
        trainer.create_model_card()
    accelerator = trainer.accelerator
    del trainer  # it holds the group of processes that ends now
    end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
