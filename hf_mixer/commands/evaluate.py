# SPDX-License-Identifier: Apache-2.0
"""
Evaluate a model on labelled images.

    hf-mixer evaluate outputs/cifar10 --dataset_name uoft-cs/cifar10
    hf-mixer evaluate outputs/cifar10 --dataset_name uoft-cs/cifar10 --image_size 24 48
    hf-mixer evaluate outputs/photos --eval_file photos_of_this_year.csv --output_dir results/this_year
    hf-mixer evaluate photos-onnx --eval_dir photos_of_this_year      # a model that `hf-mixer export` wrote
    accelerate launch scripts/evaluate.py outputs/photos --eval_dir photos_of_this_year

Prints the metrics and writes evaluation.json and pictures into the folder of the model: confusion_matrix.png, or
confused_pairs.png where there are more than 60 labels, per_class.png, calibration.png, regression.png, predictions.png
with right and wrong answers that nobody picked, and mistakes.png with the images that the model is most wrong about. One
image that it gets right becomes example.png or example.jpg, for the model card. A result on other data never replaces the
one on the model's own, unless --overwrite is given.

With --image_size it measures what the model keeps at other sizes without any training: it resizes the model and its images,
prints one line per size, the model's own first, and writes nothing.
"""

import argparse
import logging
import os
import sys
from pathlib import Path


logger = logging.getLogger(__name__)

# The images that --max_eval_samples draws are the same in every run
SEED = 42
SOURCES = ("dataset_name", "eval_dir", "eval_file")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s FOLDER [--argument value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="FOLDER", help="a trained or exported model: a folder, a file, or a name on the Hub"
    )
    parser.add_argument("--revision", help="the branch, tag or commit of a model on the Hub")
    parser.add_argument("--subfolder", default="", help="the folder of an export in the repository, such as onnx")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="load an export of the format torch, which is pickled and can run code",
    )
    data = parser.add_argument_group("data", "One of the first three is needed, except for a model of the digits.")
    data.add_argument("--dataset_name", help="a data set on the Hub, or a local folder of splits")
    data.add_argument("--eval_dir", help="a folder with one folder of images per class, or with a table of metadata")
    data.add_argument("--eval_file", help="a CSV list of images, with the columns path and label")
    data.add_argument("--dataset_config_name", help="the configuration of the data set")
    data.add_argument("--split", help="the split to evaluate on (default: test, else validation)")
    data.add_argument("--image_column_name", help="the column of the images (default: the only one with images)")
    data.add_argument(
        "--label_column_name",
        nargs="+",
        help="the column or columns of the labels (default: label, or the only classes)",
    )
    data.add_argument("--max_eval_samples", type=int, help="evaluate on this many images only, drawn at random")
    data.add_argument(
        "--match_labels_by_index",
        action="store_true",
        help="take label 0 of the data for label 0 of the model, and so on",
    )
    data.add_argument(
        "--flatten_transparency", metavar="COLOR", help="the color behind transparent images, such as white"
    )
    data.add_argument(
        "--scale_16_bit", action="store_true", help="scale images of 16 bits to 8, instead of clipping them"
    )
    parser.add_argument("--image_size", type=int, nargs="+", help="evaluate at these sizes, and write nothing")
    parser.add_argument(
        "--resize_method",
        choices=["block_diagonal", "interpolate"],
        help="how to resize the model (default: block_diagonal to multiples of its size, else interpolate)",
    )
    parser.add_argument(
        "--label_threshold",
        type=float,
        help="with several labels per image: the probability from which one counts as present (default: the model's, or 0.5)",
    )
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        help="processes that decode images (default: one per CPU core, at most 8; on a CPU with two cores 0)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8", "float8"],
        help="type to compute in (default: that of the weights); those of 8 bits are compared with float32 too. Of an "
        "export for transformers.js, the program to take",
    )
    parser.add_argument(
        "--torch_compile", action="store_true", help="compile the model first: faster for thousands of images"
    )
    parser.add_argument("--output_dir", type=Path, help="where to write the results (default: FOLDER)")
    parser.add_argument("--overwrite", action="store_true", help="replace results on other data")
    parser.add_argument("--cache_dir", help="where to keep what comes from the Hub")
    parser.add_argument("--token", help="token for the Hub (default: the one you logged in with)")
    parsed = parser.parse_args(arguments)
    problem = find_problem(parsed)
    if problem is not None:
        parser.error(problem)
    return parsed


def find_problem(parsed: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments."""
    for name, least in (("max_eval_samples", 1), ("per_device_eval_batch_size", 1), ("dataloader_num_workers", 0)):
        value = getattr(parsed, name)
        if value is not None and value < least:
            return f"--{name} has to be at least {least}, got {value}"
    if parsed.image_size is not None and min(parsed.image_size) < 1:
        return f"--image_size has to be at least 1, got {min(parsed.image_size)}"
    if parsed.label_threshold is not None and not 0 <= parsed.label_threshold <= 1:
        return f"--label_threshold has to be a probability from 0 to 1, got {parsed.label_threshold}"
    given = [f"--{name}" for name in SOURCES if getattr(parsed, name) is not None]
    if len(given) > 1:
        return f"{' and '.join(given)} name different images: give one of them"
    for name in ("dataset_config_name", "split"):
        if getattr(parsed, name) is not None and given not in ([], ["--dataset_name"]):
            return f"--{name} belongs to --dataset_name: leave it out with {given[0]}"
    if parsed.resize_method is not None and parsed.image_size is None:
        return f"--resize_method {parsed.resize_method} needs --image_size"
    if parsed.image_size is not None and (parsed.output_dir is not None or parsed.overwrite):
        option = "--overwrite" if parsed.output_dir is None else "--output_dir"
        return f"{option} has no use with --image_size, which writes nothing"
    if parsed.revision is not None and Path(parsed.model).exists():
        return f"--revision is for models on the Hub, and {parsed.model} is a local one: leave it out"
    return None


def describe_data(arguments: argparse.Namespace, trained_on: dict) -> dict:
    """
    Return `name`, `config`, of local files `fingerprint`, and, as far as it is known, `split` of the data: the digits only for
    a model that was trained on them, and the split of the training for a folder or list that the model was trained on.
    """
    from ..evaluation.results import DIGITS, fingerprint_files, is_same
    from ..local_paths import name_source

    path = arguments.eval_dir or arguments.eval_file
    name = arguments.dataset_name or path
    if path is not None and not os.path.exists(path):
        raise ValueError(f"{path} does not exist: give another --eval_dir or --eval_file")
    if name is None:
        if trained_on.get("name") != DIGITS:
            raise ValueError("no images to evaluate on: name them with --dataset_name, --eval_dir or --eval_file")
        name = DIGITS
    data = {"name": name_source(name), "config": arguments.dataset_config_name, "split": arguments.split}
    if path is not None:
        data["fingerprint"] = fingerprint_files(path)
        if is_same(data, trained_on):
            data["split"] = trained_on.get("train_split")
    return data


def load_model(arguments: argparse.Namespace, image_size: int | None = None):
    """Return a model and its image processor, resized to `image_size` if there is one."""
    from ..data.labels import problem_type_of
    from ..evaluation.loading import load_model as load

    model, image_processor = load(
        arguments.model,
        {"revision": arguments.revision, "cache_dir": arguments.cache_dir, "token": arguments.token},
        dtype=arguments.dtype,
        subfolder=arguments.subfolder,
        trust_remote_code=arguments.trust_remote_code,
        batch_size=arguments.per_device_eval_batch_size,
        torch_options={"image_size": arguments.image_size, "torch_compile": arguments.torch_compile},
        image_size=image_size,
        resize_method=arguments.resize_method,
    )
    problem_type = problem_type_of(model.config)
    least = 2 if problem_type == "single_label_classification" else 1
    if model.config.num_labels < least:
        raise ValueError(f"{arguments.model} has {model.config.num_labels} labels, {problem_type} needs {least}")
    if arguments.label_threshold is not None and problem_type != "multi_label_classification":
        raise ValueError(
            f"--label_threshold is for models that give an image several labels: {arguments.model} is made for "
            f"{problem_type}"
        )
    return model, image_processor


def load_images(arguments: argparse.Namespace):
    """Return the data as it is, and the name of its split."""
    from ..data.datasets import load_evaluation_dataset

    return load_evaluation_dataset(
        arguments.dataset_name,
        arguments.dataset_config_name,
        arguments.eval_dir,
        arguments.split,
        eval_file=arguments.eval_file,
        image_column_name=arguments.image_column_name,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
    )


def prepare_images(arguments: argparse.Namespace, config, dataset, split: str):
    """Return the images to evaluate on, with their labels as the model needs them."""
    from ..data.columns import select_image_columns
    from ..data.datasets import draw_images
    from ..data.labels import check_labels, problem_type_of
    from ..data.model_labels import use_model_labels

    columns = arguments.label_column_name
    if columns is not None and len(columns) == 1:
        columns = columns[0]
    dataset = select_image_columns(dataset, arguments.image_column_name, columns, problem_type_of(config))
    dataset = use_model_labels(dataset, config, arguments.match_labels_by_index)
    check_labels(dataset, split)
    return draw_images(dataset, arguments.max_eval_samples, SEED)


def measure(arguments: argparse.Namespace, accelerator, model, transform, dataset) -> tuple:
    """Return what `evaluate_model` does, of the quantized or compiled model where the arguments ask for it."""
    from ..compilation import compile_for_inference
    from ..data.loaders import default_num_workers
    from ..evaluation.evaluate import evaluate_model
    from ..low_precision import QUANTIZED, quantize
    from ..memory import keep_freed_memory
    from ..modeling_mixer import MixerForImageClassification
    from ..threads import limit_threads

    limit_threads(model.config, arguments.per_device_eval_batch_size)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    num_workers = arguments.dataloader_num_workers
    if num_workers is None:
        num_workers = default_num_workers()
        if accelerator.device.type == "cpu" and num_workers <= 2:
            num_workers = 0  # they would only take time from the model
    thresholds = model.config.label_thresholds
    if arguments.label_threshold is not None:
        thresholds = [arguments.label_threshold] * model.config.num_labels
    reference = None
    in_torch = isinstance(model, MixerForImageClassification)
    if in_torch and arguments.dtype in QUANTIZED:
        reference = model.to(accelerator.device)
        model = quantize(reference, arguments.dtype)
    # Without it, int8 is slower than float32 on a CPU
    if arguments.torch_compile or (in_torch and arguments.dtype == "int8" and accelerator.device.type == "cpu"):
        compile_for_inference(model.to(accelerator.device), arguments.per_device_eval_batch_size)
    images = dataset.with_transform(transform)
    batch_size = arguments.per_device_eval_batch_size
    return evaluate_model(model, images, accelerator, batch_size, num_workers, reference, thresholds)


def evaluate(arguments: argparse.Namespace, accelerator) -> None:
    """Evaluate the model as it is, and write the results."""
    from ..data.images import ImageConversion, ImageTransform, find_image_format
    from ..evaluation.examples import save_example
    from ..evaluation.pictures import save_pictures
    from ..evaluation.prediction import Predictor
    from ..evaluation.results import (
        check_replaceable,
        find_home,
        is_training_data,
        read_training_data,
        write_results,
    )
    from ..utils import describe_hardware, find_output_dir, library_versions

    output_dir = find_output_dir(arguments.model, arguments.output_dir)
    conversion = ImageConversion(arguments.flatten_transparency, arguments.scale_16_bit)
    trained_on = read_training_data(arguments.model)
    measured_on = describe_data(arguments, trained_on)
    # The results of a model are in its own folder
    owner = trained_on if output_dir.resolve() == find_home(arguments.model).resolve() else {}
    check_replaceable(output_dir, measured_on, owner, arguments.overwrite)
    with accelerator.main_process_first():  # one process downloads, the others find it done
        images, split = load_images(arguments)
        measured_on["split"] = measured_on["split"] or split
        if (arguments.max_eval_samples or len(images)) < len(images):
            measured_on["max_eval_samples"] = arguments.max_eval_samples
        check_replaceable(output_dir, measured_on, owner, arguments.overwrite)
        model, image_processor = load_model(arguments)
        dataset = prepare_images(arguments, model.config, images, measured_on["split"])
    output_dir.mkdir(parents=True, exist_ok=True)  # before the work whose results it holds
    if accelerator.is_main_process:
        if is_training_data(measured_on, trained_on):
            logger.warning("The model was trained on these images, or on most of them: it does worse on others.")
        warn_of_conversion(trained_on, conversion, dataset)

    transform = ImageTransform(image_processor, conversion)
    results, scores = measure(arguments, accelerator, model, transform, dataset)
    if not accelerator.is_main_process:
        return
    measured_on["num_images"] = len(dataset)
    image_format = find_image_format(dataset)
    if image_format is not None:
        measured_on["image_format"] = image_format
    if conversion.options():
        measured_on["image_conversion"] = conversion.options()
    about = {
        "revision": arguments.revision,
        "format": getattr(model, "format", None),
        "dtype": getattr(model, "program_dtype", arguments.dtype),
    }
    results = {
        "dataset": measured_on,
        **{key: value for key, value in about.items() if value},
        **results,
        "num_processes": accelerator.num_processes,
        "hardware": describe_hardware(model.device, accelerator.num_processes),
        "versions": library_versions(),
    }
    pixels = dataset.with_transform(ImageTransform(image_processor, conversion, do_rescale=False, do_normalize=False))

    def read_image(row: int):
        return pixels[row]["pixel_values"].permute(1, 2, 0).clamp(0, 255).byte().numpy()

    predictor = Predictor(model, image_processor, label_threshold=arguments.label_threshold)
    write_results(
        output_dir,
        results,
        lambda folder: save_pictures(folder, results, scores, read_image),
        lambda folder: save_example(folder, results, scores, dataset, predictor, conversion),
    )
    print_summary(results, output_dir)


def warn_of_conversion(trained_on: dict, conversion, dataset) -> None:
    """Say which options the training had and this evaluation has not, or the other way round, if it makes a difference."""
    from ..data.images import count_special_images

    before, here = trained_on.get("image_conversion") or {}, conversion.options()
    if not trained_on or before == here:
        return
    found = count_special_images(dataset)
    color = before.get("flatten_transparency") or ""
    notes = []
    for option, what, count, value in (
        ("flatten_transparency", "transparent", found["num_transparent"], color),
        ("scale_16_bit", "of 16 bits", found["num_16_bit"], ""),
    ):
        if before.get(option) != here.get(option) and count:
            way_out = f"with --{option} {value}".strip() if option in before else f"without --{option}"
            notes.append(f"{count:,} of {found['num_images']:,} images are {what}: trained {way_out}")
    if notes:
        logger.warning(f"{'; '.join(notes)}. Give the same options, or the model sees other pixels than in training.")


def evaluate_sizes(arguments: argparse.Namespace, accelerator) -> None:
    """Print how well the model does at its own image size, and resized to others."""
    from ..configuration_mixer import to_pair
    from ..data.images import ImageConversion, ImageTransform
    from ..evaluation.metrics import METRICS
    from ..evaluation.results import read_training_data

    describe_data(arguments, read_training_data(arguments.model))
    conversion = ImageConversion(arguments.flatten_transparency, arguments.scale_16_bit)
    with accelerator.main_process_first():
        config = load_model(arguments)[0].config
        for size in arguments.image_size:
            if any(size % patch for patch in to_pair(config.patch_size)):
                raise ValueError(f"--image_size {size} is no multiple of the model's patch_size={config.patch_size}")
        dataset = prepare_images(arguments, config, *load_images(arguments))
    for size in (None, *arguments.image_size):
        model, image_processor = load_model(arguments, size)
        results, _ = measure(arguments, accelerator, model, ImageTransform(image_processor, conversion), dataset)
        key = next(key for key in METRICS[results["problem_type"]] if key in results)
        if accelerator.is_main_process:
            print(f"image_size={model.config.image_size}  {key}={results[key]:.4f}", flush=True)


def print_summary(results: dict, output_dir: Path) -> None:
    from ..evaluation.metrics import METRICS, confidence_interval

    dataset = results["dataset"]
    part = ", drawn at random" if "max_eval_samples" in dataset else ""
    print(f"{dataset['num_images']:,} images of {dataset['name']}, split {dataset['split']}{part}")
    lines = {}
    for key, metric in METRICS[results["problem_type"]].items():
        if key in results:
            lines[metric.title] = f"{results[key]:9.2%}" if metric.is_share else f"{results[key]:9.4g}"
            if metric.is_mean_over_images:
                low, high = confidence_interval(results[key], dataset["num_images"])
                lines[metric.title] += f"  (95 % interval: {low:.2%} to {high:.2%})"
    lines["loss"] = f"{results['loss']:9.4g}"
    if "agreement" in results:
        lines["like float32"] = f"{results['agreement']:9.2%}"
    lines["speed"] = f"{results['images_per_second']:9,.0f} images per second, {results['hardware']}"
    for title, value in lines.items():
        print(f"  {title:26} {value}")
    print_weakest(results)
    if results.get("confusion_matrix", []) is None:
        print(f"There is no confusion matrix: {len(results['per_class']):,} labels are too many for one")
    print(f"Results and pictures are in {output_dir}")


def print_weakest(results: dict) -> None:
    """Print the labels that the model knows least, or each of several outputs."""
    per_class = results["per_class"]
    if results["problem_type"] == "regression":
        for entry in per_class if len(per_class) > 1 else []:
            score = "" if entry["r2"] is None else f"R\N{SUPERSCRIPT TWO} {entry['r2']:.4g}, "
            print(f"  {entry['label']}: {score}mean absolute error {entry['mae']:.4g}")
        return
    key = "accuracy" if results["problem_type"] == "single_label_classification" else "average_precision"
    imperfect = [entry for entry in per_class if entry[key] is not None and entry[key] < 1]
    if imperfect:
        print(f"Labels with the lowest {key.replace('_', ' ')}:")
    # Of equal ones first those with the most images
    for entry in sorted(imperfect, key=lambda entry: (entry[key], -entry["num_images"]))[:5]:
        images = "image" if entry["num_images"] == 1 else "images"
        print(f"  {entry[key]:7.2%}  {entry['label']} ({entry['num_images']:,} {images})")


def run(arguments: argparse.Namespace) -> None:
    import torch
    from accelerate import Accelerator

    from ..progress import quiet_libraries
    from ..threads import limit_threads
    from ..utils import end_together, one_line_errors

    quiet_libraries(has_watcher=arguments.dataset_name is not None and sys.stderr.isatty())
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with one_line_errors():
        limit_threads()
        if arguments.image_size is None:
            evaluate(arguments, accelerator)
        else:
            evaluate_sizes(arguments, accelerator)
    end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
