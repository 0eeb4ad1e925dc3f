# SPDX-License-Identifier: Apache-2.0
"""What a training run tells of itself: before, what it found and what it will do; after, what came out and what comes next."""

import math
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from ..configuration_mixer import to_pair
from ..data.sources import find_split_folders, holds_parquet
from ..evaluation.metrics import METRICS
from ..utils import describe_hardware
from .command_line import DataTrainingArguments
from .curves import CURVES_NAME
from .progress import console_width, format_duration, format_name, format_number, format_value


MAX_CLASSES_SHOWN = 20
NUM_EXTREMES_SHOWN = 5
NAME_WIDTH = 8
HARD_SPACE = "\N{NO-BREAK SPACE}"
PROBLEM_TITLES = {
    "single_label_classification": "{:,} classes, one per image",
    "multi_label_classification": "{:,} labels, any number per image",
    "regression": "numbers to estimate: {:,}",
}


def wrap(text: str, indent: int = 0) -> str:
    """Return a text in lines that fit the terminal, all but the first one indented. Non-breaking spaces hold words together."""
    lines = textwrap.wrap(
        text, console_width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(HARD_SPACE, " ")


def format_entry(name: str, text: str) -> str:
    """Return a named line of a summary, wrapped to the width of the terminal."""
    return wrap(f"{name:<{NAME_WIDTH}}  {text}", NAME_WIDTH + 2)


def describe_classes(counts: Mapping[str, int]) -> str:
    """Return all labels with their numbers of images, or the extremes of many."""
    by_count = sorted(counts.items(), key=lambda entry: -entry[1])

    def listed(entries) -> str:
        return ", ".join(f"{name} ({count:,})".replace(" ", HARD_SPACE) for name, count in entries)

    if len(counts) <= MAX_CLASSES_SHOWN:
        return listed(counts.items())
    most, fewest = by_count[:NUM_EXTREMES_SHOWN], by_count[-NUM_EXTREMES_SHOWN:]
    return f"the most images: {listed(most)}; the fewest: {listed(fewest)}"


def describe_values(labels: np.ndarray, names: list[str]) -> str:
    """Return the ranges of the values to estimate."""
    lowest, mean, highest = labels.min(axis=0), labels.mean(axis=0), labels.max(axis=0)
    return "; ".join(
        f"{name} from {format_number(low)} to {format_number(high)}, {format_number(middle)} on average"
        for name, low, middle, high in zip(names, lowest, mean, highest)
    )


def describe_special_images(special: Mapping[str, int], conversion: Mapping[str, Any]) -> list[str]:
    """Say how many images have transparency or more than 8 bits, what becomes of them, and how to change that."""
    lines = []
    total, transparent, deep = special["num_images"], special["num_transparent"], special["num_16_bit"]
    if transparent:
        colour = conversion.get("flatten_transparency")
        fate = (
            f"put on {colour}" if colour else "their transparency is dropped (--flatten_transparency white keeps it)"
        )
        lines.append(f"{transparent:,} of {total:,} images looked at are transparent: {fate}")
    if deep:
        is_scaled = conversion.get("scale_16_bit")
        fate = "scaled to 8" if is_scaled else "values over 255 are cut off (--scale_16_bit true scales them)"
        lines.append(f"{deep:,} of {total:,} images looked at have 16 bits: {fate}")
    return lines


def describe_images(description: Mapping[str, Any]) -> str:
    """Return the numbers of images of a run, from what its record says of its data."""
    count, held_out = description["num_train_images"], description["num_eval_images"]
    if held_out is None:
        return "streamed"
    train = "" if count is None else f"{count:,} to train on, "
    skipped = description.get("num_skipped_images")
    rest = f"; {skipped:,} cannot be read and are left out" if skipped else ""
    return f"{train}{held_out:,} to evaluate on (split {description['eval_split']}){rest}"


def describe_model(model, base_model: str | None) -> str:
    """Return where the model comes from, and its size."""
    config = model.config
    height, width = to_pair(config.image_size)
    color = "" if config.num_channels == 3 else f" with {config.num_channels} channel(s)"
    origin = base_model or f"from scratch, width {config.hidden_size}, depth {config.num_hidden_layers}"
    return f"{origin}; {describe_parameters(model)}; images of {height} x {width} pixels{color}"


def describe_parameters(model) -> str:
    count = model.num_parameters()
    return (f"{count / 1e6:,.2f} M" if count >= 1e5 else f"{count:,}") + " parameters"


def describe_device(args) -> str:
    """Return what the run computes on, how precisely, and in how many processes."""
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    return f"{describe_hardware(args.device, args.world_size)}; {precision}; {processes}"


def describe_steps(args, num_train_images: int | None) -> str:
    """Return how many steps and epochs the run has, how many images a step takes, and how it learns."""
    per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    optimizer = f"muon and {args.optim.value}" if args.muon else args.optim.value
    learning = f"{optimizer}, learning rate {args.learning_rate:g} ({scheduler})"
    if num_train_images is None:
        return f"{args.max_steps:,} of {per_step} images; {learning}"
    rounded = math.floor if args.dataloader_drop_last else math.ceil
    per_epoch = max(1, rounded(num_train_images / per_step))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return f"{steps:,} of up to {per_step} images, {format_number(steps / per_epoch)} epochs; {learning}"


def describe_results(problem_type: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for the loss and each metric of an evaluation, whose names begin with `eval_`."""
    values = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    names = [name for name in ("loss", *METRICS[problem_type]) if name in values]
    rows = [(format_name(problem_type, name), format_value(problem_type, name, values[name])) for name in names]
    title_width, value_width = (max(map(len, column)) for column in zip(*rows))
    return [f"{title:<{title_width}}  {value:>{value_width}}" for title, value in rows]


def describe_outcome(output_dir: str, train_metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how long a training took, and the places of what it has written."""
    seconds, rate = train_metrics["train_runtime"], train_metrics["train_samples_per_second"]
    entries = [("time", f"{format_duration(seconds)}, {rate:,.0f} images per second"), ("model", output_dir)]
    if (Path(output_dir) / CURVES_NAME).is_file():
        entries.append(("curves", str(Path(output_dir) / CURVES_NAME)))
    return entries


def next_commands(output_dir: str, dataset, data_args: DataTrainingArguments) -> list[str]:
    """Return the commands to try with a trained model and its data, as they can be pasted into a shell."""
    repository = Path(output_dir).resolve().name
    conversion = []
    if data_args.flatten_transparency is not None:
        conversion += ["--flatten_transparency", data_args.flatten_transparency]
    if data_args.scale_16_bit:
        conversion.append("--scale_16_bit")
    commands = [
        ["predict", output_dir, find_example_image(dataset) or "photo.jpg", *conversion],
        ["evaluate", output_dir, *name_evaluation_data(data_args), *conversion],
        ["publish", output_dir, repository, "--dry-run"],
    ]
    return [shlex.join(["hf-mixer", *command]) for command in commands]


def find_example_image(dataset) -> str | None:
    """Return the path of an image of the split `validation`, if its images are files."""
    if not isinstance(dataset, DatasetDict):
        return None
    path = dataset["validation"][0]["image"]["path"]
    return path if path is not None and Path(path).is_file() else None


def name_evaluation_data(data_args: DataTrainingArguments) -> list[str]:
    """Return the arguments of `hf-mixer evaluate` that name held-out data: that of the run, or a place for one's own."""
    name = data_args.dataset_name
    if name is not None:
        held_out = {"validation", "test"} & find_split_folders(name).keys()
        if Path(name).is_dir() and not held_out and not holds_parquet(name):
            return ["--eval_dir", "test_photos"]
        named = {
            "--dataset_name": name,
            "--dataset_config_name": data_args.dataset_config_name,
            "--split": data_args.eval_split,
        }
        return [part for option, value in named.items() if value is not None for part in (option, value)]
    if data_args.train_dir is not None:
        return ["--eval_dir", data_args.validation_dir or "test_photos"]
    if data_args.train_file is not None:
        return ["--eval_file", data_args.validation_file or "test.csv"]
    return []
