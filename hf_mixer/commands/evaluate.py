# SPDX-License-Identifier: Apache-2.0
"""
Evaluate a classifier on labelled images.

    python scripts/evaluate.py outputs/cifar10 --dataset_name uoft-cs/cifar10
    accelerate launch scripts/evaluate.py outputs/photos --eval_dir photos_of_this_year

Prints accuracy and calibration and writes `evaluation.json`, `confusion_matrix.png` and `calibration.png` into the folder
of the model. The labels of the data are matched to those of the model by name, or by index where they have no names.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator

from .. import load_checkpoint
from ..data.datasets import load_evaluation_dataset, prepare_evaluation_dataset
from ..data.images import ImageTransform
from ..evaluation.evaluate import evaluate_model
from ..evaluation.plots import save_calibration, save_confusion_matrix
from ..low_precision import QUANTIZED, quantize
from ..utils import describe_hardware, end_together, find_output_dir, library_versions, one_line_errors


# The images that --max_eval_samples draws are the same in every run
SEED = 42


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FOLDER", help="a trained model: a folder, a file, or a name on the Hub")
    parser.add_argument(
        "--dataset_name", help="a data set on the Hub, or a local folder of splits (default: scikit-learn's digits)"
    )
    parser.add_argument("--dataset_config_name", help="the configuration of the data set")
    parser.add_argument("--eval_dir", help="instead of a data set: a folder with one folder of images per class")
    parser.add_argument("--split", help="the split to evaluate on (default: test, else validation)")
    parser.add_argument("--image_column_name", help="the column of the images (default: the only one with images)")
    parser.add_argument("--label_column_name", help="the column of the labels (default: label, or the only classes)")
    parser.add_argument("--max_eval_samples", type=int, help="evaluate on this many images only, drawn at random")
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        help="processes that decode images (default: with an accelerator up to 8)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", *QUANTIZED],
        help="type to compute in (default: that of the weights); those of 8 bits are compared with float32 too",
    )
    parser.add_argument("--output_dir", type=Path, help="where to write the results (default: FOLDER)")
    parser.add_argument("--cache_dir", help="where to keep what comes from the Hub")
    parser.add_argument("--token", help="token for the Hub (default: the one you logged in with)")
    parsed = parser.parse_args(arguments)
    for name, least in (("max_eval_samples", 1), ("per_device_eval_batch_size", 1), ("dataloader_num_workers", 0)):
        value = getattr(parsed, name)
        if value is not None and value < least:
            parser.error(f"--{name} has to be at least {least}, got {value}")
    return parsed


def to_json(results: dict) -> str:
    """Return JSON with one line per label, row and bin."""

    def lines(value):
        if not isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        return "[\n    " + ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {lines(value)}" for key, value in results.items()) + "\n}\n"


def print_summary(results: dict, output_dir: Path) -> None:
    dataset = results["dataset"]
    print(f"{dataset['num_images']:,} images of {dataset['name']}, split {dataset['split']}")
    print(f"  top-1 accuracy  {results['top1']:7.2%}")
    if results["top5"] is not None:
        print(f"  top-5 accuracy  {results['top5']:7.2%}")
    print(f"  loss            {results['loss']:7.4f}")
    print(f"  ECE             {results['ece']:7.2%}")
    if "agreement" in results:
        print(f"  like float32    {results['agreement']:7.2%}")
    print(f"  speed           {results['images_per_second']:,.0f} images per second, {results['hardware']}")
    imperfect = [entry for entry in results["per_class"] if entry["accuracy"] is not None and entry["accuracy"] < 1]
    if imperfect:
        print("Labels with the lowest accuracy:")
    for entry in sorted(imperfect, key=lambda entry: entry["accuracy"])[:5]:
        print(f"  {entry['accuracy']:7.2%}  {entry['label']} ({entry['num_images']:,} images)")
    if results["confusion_matrix"] is None:
        print(f"There is no confusion matrix: {len(results['per_class']):,} labels are too many for one")
    print(f"Results and pictures are in {output_dir}")


def run(arguments: argparse.Namespace) -> None:
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with one_line_errors():
        output_dir = find_output_dir(arguments.model, arguments.output_dir)
        # One process downloads, the others find it done
        with accelerator.main_process_first():
            model, image_processor = load_checkpoint(
                arguments.model,
                dtype="float32" if arguments.dtype in QUANTIZED else arguments.dtype,
                cache_dir=arguments.cache_dir,
                token=arguments.token,
            )
            config = model.config
            if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
                raise ValueError(
                    f"{arguments.model} does not choose one of several labels: num_labels={config.num_labels}, "
                    f"problem_type={config.problem_type}"
                )
            dataset, split = load_evaluation_dataset(
                arguments.dataset_name,
                arguments.dataset_config_name,
                arguments.eval_dir,
                arguments.split,
                cache_dir=arguments.cache_dir,
                token=arguments.token,
            )
        dataset = prepare_evaluation_dataset(
            dataset,
            [config.id2label[index] for index in range(config.num_labels)],
            arguments.image_column_name,
            arguments.label_column_name,
        )
        if arguments.max_eval_samples is not None and arguments.max_eval_samples < len(dataset):
            dataset = dataset.shuffle(seed=SEED).select(range(arguments.max_eval_samples))
        num_workers = arguments.dataloader_num_workers
        if num_workers is None:
            # On the CPU they would only take time from the model
            cores = (os.cpu_count() or 1) // accelerator.num_processes
            num_workers = 0 if accelerator.device.type == "cpu" else min(8, cores)
        # Before the work whose results it holds, and after the input is known to be good
        output_dir.mkdir(parents=True, exist_ok=True)

        reference = None
        if arguments.dtype in QUANTIZED:
            model = model.to(accelerator.device)
            reference, model = model, quantize(model, arguments.dtype)
        results = evaluate_model(
            model,
            dataset.with_transform(ImageTransform(image_processor)),
            accelerator,
            arguments.per_device_eval_batch_size,
            num_workers,
            reference,
        )
        if accelerator.is_main_process:
            name = arguments.dataset_name or arguments.eval_dir or "scikit-learn digits"
            results = {
                "dataset": {
                    "name": name,
                    "config": arguments.dataset_config_name,
                    "split": split,
                    "num_images": len(dataset),
                },
                **results,
                "num_processes": accelerator.num_processes,
                "hardware": describe_hardware(accelerator.device, accelerator.num_processes),
                "versions": library_versions(),
            }
            if results["confusion_matrix"] is not None:
                labels = [entry["label"] for entry in results["per_class"]]
                save_confusion_matrix(output_dir / "confusion_matrix.png", results["confusion_matrix"], labels)
            save_calibration(output_dir / "calibration.png", results["calibration"], results["ece"])
            (output_dir / "evaluation.json").write_text(to_json(results), encoding="utf-8")
            print_summary(results, output_dir)
    end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
