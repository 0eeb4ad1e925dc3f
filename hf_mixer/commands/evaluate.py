# SPDX-License-Identifier: Apache-2.0
"""
Evaluate a classifier on labelled images.

    hf-mixer evaluate outputs/cifar10 --dataset_name uoft-cs/cifar10
    hf-mixer evaluate outputs/cifar10 --dataset_name uoft-cs/cifar10 --image_size 24 48
    accelerate launch scripts/evaluate.py outputs/photos --eval_dir photos_of_this_year

Prints accuracy and calibration and writes `evaluation.json`, `confusion_matrix.png` and `calibration.png` into the folder
of the model. The labels of the data are matched to those of the model by name, or by index where they have no names.

With --image_size it measures what the model keeps at other sizes without any training: it resizes the model and its images,
prints one line per size, the model's own first, and writes nothing.
"""

import argparse
import json
from pathlib import Path


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
    parser.add_argument("--image_size", type=int, nargs="+", help="evaluate at these sizes, and write nothing")
    parser.add_argument(
        "--resize_method",
        choices=["block_diagonal", "interpolate"],
        help="how to resize the model (default: block_diagonal to multiples of its size, else interpolate)",
    )
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        help="processes that decode images (default: with an accelerator up to 8)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8", "float8"],
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
    if parsed.resize_method is not None and parsed.image_size is None:
        parser.error(f"--resize_method {parsed.resize_method} needs --image_size")
    if parsed.output_dir is not None and parsed.image_size is not None:
        parser.error("--output_dir has no use with --image_size, which writes nothing")
    return parsed


def load_model(arguments: argparse.Namespace, image_size: int | None = None):
    """Return a classifier and its image processor, resized to `image_size` if there is one."""
    from ..checkpoints import load_checkpoint
    from ..low_precision import QUANTIZED

    model, image_processor = load_checkpoint(
        arguments.model,
        image_size=image_size,
        resize_method=arguments.resize_method,
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
    return model, image_processor


def load_data(arguments: argparse.Namespace, model):
    """Return the images, with their labels as the model numbers them, and the name of their split."""
    from ..data.datasets import check_labels, draw_images, load_evaluation_dataset, select_image_columns
    from ..data.labels import use_model_labels

    dataset, split = load_evaluation_dataset(
        arguments.dataset_name,
        arguments.dataset_config_name,
        arguments.eval_dir,
        arguments.split,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
    )
    dataset = select_image_columns(dataset, arguments.image_column_name, arguments.label_column_name)
    check_labels(dataset, split)
    dataset = use_model_labels(dataset, [model.config.id2label[index] for index in range(model.config.num_labels)])
    return draw_images(dataset, arguments.max_eval_samples, SEED), split


def measure(arguments: argparse.Namespace, accelerator, model, image_processor, dataset) -> dict:
    """Return the results of `evaluate_model`, of the quantized model where --dtype asks for it."""
    from ..data.images import ImageTransform
    from ..data.loaders import default_num_workers
    from ..evaluation.evaluate import evaluate_model
    from ..low_precision import QUANTIZED, quantize

    num_workers = arguments.dataloader_num_workers
    if num_workers is None:
        # On the CPU they would only take time from the model
        num_workers = 0 if accelerator.device.type == "cpu" else default_num_workers()
    reference = None
    if arguments.dtype in QUANTIZED:
        reference = model.to(accelerator.device)
        model = quantize(reference, arguments.dtype)
    images = dataset.with_transform(ImageTransform(image_processor))
    return evaluate_model(model, images, accelerator, arguments.per_device_eval_batch_size, num_workers, reference)


def evaluate(arguments: argparse.Namespace, accelerator) -> None:
    """Evaluate the model as it is, and write the results."""
    from ..evaluation.plots import save_calibration, save_confusion_matrix
    from ..utils import describe_hardware, find_output_dir, library_versions

    output_dir = find_output_dir(arguments.model, arguments.output_dir)
    with accelerator.main_process_first():  # one process downloads, the others find it done
        model, image_processor = load_model(arguments)
        dataset, split = load_data(arguments, model)
    output_dir.mkdir(parents=True, exist_ok=True)  # before the work whose results it holds
    results = measure(arguments, accelerator, model, image_processor, dataset)
    if not accelerator.is_main_process:
        return
    results = {
        "dataset": {
            "name": arguments.dataset_name or arguments.eval_dir or "scikit-learn digits",
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


def evaluate_sizes(arguments: argparse.Namespace, accelerator) -> None:
    """Print the accuracy of the model at its own image size, and resized to others."""
    with accelerator.main_process_first():
        dataset, _ = load_data(arguments, load_model(arguments)[0])
    for size in (None, *arguments.image_size):
        model, image_processor = load_model(arguments, size)
        accuracy = measure(arguments, accelerator, model, image_processor, dataset)["top1"]
        if accelerator.is_main_process:
            print(f"image_size={model.config.image_size}  accuracy={accuracy:.4f}", flush=True)


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
    import torch
    from accelerate import Accelerator

    from ..utils import end_together, one_line_errors

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with one_line_errors():
        if arguments.image_size is None:
            evaluate(arguments, accelerator)
        else:
            evaluate_sizes(arguments, accelerator)
    end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
