# SPDX-License-Identifier: Apache-2.0
"""What a training run leaves behind for its readers: a record of how it was made, and its curves."""

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from ..local_paths import without_paths
from ..utils import describe_hardware, hide_tokens, library_versions
from .arguments import MixerTrainingArguments


RECORD_NAME = "training_run.json"
# Arguments of `TrainingArguments` that belong to the recipe of a model, beside those of `MixerTrainingArguments`
HYPERPARAMETERS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "optim_args",
    "max_grad_norm",
    "label_smoothing_factor",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "bf16",
    "fp16",
    "torch_compile",
)


def describe_command(arguments: list[str]) -> str:
    """Return the command line of a run, without the values of tokens."""
    return hide_tokens(f"hf-mixer train {shlex.join(arguments)}")


def hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that make up the recipe of a run: the usual ones, and the Mixer's where they are in use."""
    values = {name: getattr(args, name) for name in HYPERPARAMETERS}
    # The path of the images makes no difference to the model
    other = {field.name for field in fields(TrainingArguments)} | {"cache_images"}
    for field in fields(args):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name not in other and getattr(args, field.name) != default:
            values[field.name] = getattr(args, field.name)
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    return {name: value for name, value in values.items() if value not in (None, {}, False, -1, "")}


def write_training_run(
    trainer: Trainer,
    metrics: dict[str, float],
    dataset: dict[str, Any],
    command: str | None = None,
    recipe: str | None = None,
    base_model: str | None = None,
    teacher_model: str | None = None,
) -> None:
    """
    Write `training_run.json` into the output folder: what was trained, on what, how, and how fast. Of paths it holds the last
    part, as others may read it.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, after the training, with [`MixerTrainingArguments`].
        metrics (`dict`):
            The metrics that `trainer.train` returned.
        dataset (`dict`):
            `name`, `config`, `train_split`, `eval_split`, `num_train_images`, `num_eval_images`, `problem_type` and, where
            they are known, `class_counts`, `num_skipped_images`, `image_conversion` and `fingerprint` (of local files).
        base_model (`str`, *optional*):
            The pretrained model that the run started from.
        teacher_model (`str`, *optional*):
            The model that the run learned from, beside the labels.
    """
    args: MixerTrainingArguments = trainer.args
    settings = hyperparameters(args)
    if teacher_model is None:
        settings.pop("distillation_alpha", None)
    else:
        settings["distillation_alpha"] = args.distillation_alpha
    record = {
        "command": command,
        "recipe": recipe,
        "base_model": base_model,
        "teacher_model": teacher_model,
        "dataset": dataset,
        "hyperparameters": settings,
        "hardware": describe_hardware(args.device, args.world_size),
        "num_processes": args.world_size,
        "versions": library_versions(),
        "duration_seconds": metrics["train_runtime"],
        "images_per_second": metrics["train_samples_per_second"],
        "num_parameters": trainer.model.num_parameters(),
    }
    path = Path(args.output_dir) / RECORD_NAME
    path.write_text(json.dumps(without_paths(record), indent=2) + "\n")
