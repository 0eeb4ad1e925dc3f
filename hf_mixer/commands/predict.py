# SPDX-License-Identifier: Apache-2.0
"""
Say what a trained model sees in images.

    hf-mixer predict outputs/photos photo.jpg                # a table
    hf-mixer predict outputs/photos folder/ --json           # one line of JSON per image
    hf-mixer predict photos-onnx photo.jpg                   # a model that `hf-mixer export` wrote, in its own runtime
    hf-mixer predict outputs/photos archive/ --output_dir predictions
    accelerate launch scripts/predict.py outputs/photos --dataset_name me/photos --streaming --output_dir predictions

A folder stands for all images below it, and a file `list.csv` for the images in its column `path`. An image that cannot be
read is named on standard error, the others are still predicted, and the exit code is 1.

With --output_dir it writes parquet files, which `load_dataset("predictions")` reads: one row for every image, in the order
of the data, with the columns `label`, `score` and `top5`, after `path`, which begins at the folder that was given, or the
columns of the data set (those of the same name become `data_label` and so on; images are left out). With several labels per
image there is `labels` as well, in regression only `value` (or `values`). For an image that cannot be read these are empty,
and `error` says why. A run that was killed goes on when the same command is given again, on any number of processes.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path


# How a shell reports a program that wrote to a closed pipe
BROKEN_PIPE = 141


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        metavar="FOLDER",
        help="a trained or exported model: a folder, a file, or a name on the Hub, in any layout",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image files, folders of them, or lists in CSV")
    parser.add_argument("--top_k", type=int, help="how many labels to give per image (default: 3, in files 5)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument(
        "--label_threshold",
        type=float,
        help="the probability from which one of several labels counts as present (default: the model's, else 0.5)",
    )
    parser.add_argument(
        "--flatten_transparency", metavar="COLOR", help="let this color show through transparent pixels"
    )
    parser.add_argument(
        "--scale_16_bit", action="store_true", help="scale images of 16 bits to 8, instead of clipping"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--subfolder", default="", help="the folder of an export in the repository, such as onnx")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="load an export of the format torch, which is pickled and can run code",
    )
    parser.add_argument("--device", help="device to run on (default: an accelerator if there is one)")
    parser.add_argument(
        "--torch_compile", action="store_true", help="compile the model first: faster for thousands of images"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image instead of a table")
    parser.add_argument("--cache_dir", help="where to keep what comes from the Hub")
    parser.add_argument("--token", help="token for the Hub (default: the one you logged in with)")
    files = parser.add_argument_group("large sets")
    files.add_argument("--output_dir", type=Path, help="write parquet files into this folder instead of printing")
    files.add_argument("--dataset_name", help="instead of images: a data set on the Hub, or a local folder")
    files.add_argument("--dataset_config_name", help="the configuration of the data set")
    files.add_argument("--split", help="the split to predict (default: the only one, else test, else validation)")
    files.add_argument("--image_column_name", help="the column of the images (default: the only one with images)")
    files.add_argument(
        "--streaming",
        nargs="?",
        const="true",
        default="false",
        choices=["true", "false"],
        help="read the data set while predicting, instead of downloading it before",
    )
    files.add_argument("--rows_per_file", type=int, default=1024, help="images per parquet file (default: 1024)")
    files.add_argument(
        "--push_to_hub", metavar="REPO_ID", help="put the result on the Hub, as a data set of this name"
    )
    files.add_argument("--private", action="store_true", help="create that data set as a private one")
    parsed = parser.parse_args(arguments)
    parsed.streaming = parsed.streaming == "true"
    check_arguments(parser, parsed)
    return parsed


def check_arguments(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """End the program where the arguments do not go together, or a value is out of range."""
    for name in ("top_k", "batch_size", "rows_per_file"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name} has to be at least 1, got {value}")
    if parsed.label_threshold is not None and not 0 < parsed.label_threshold < 1:
        parser.error(f"--label_threshold has to be a probability between 0 and 1, got {parsed.label_threshold}")
    if bool(parsed.images) == (parsed.dataset_name is not None):
        parser.error("give either images or --dataset_name")
    needs = {
        "dataset_name": ("dataset_config_name", "split", "image_column_name", "streaming"),
        "output_dir": ("dataset_name", "push_to_hub"),
        "push_to_hub": ("private",),
    }
    for needed, names in needs.items():
        for name in names:
            if getattr(parsed, name) and not getattr(parsed, needed):
                parser.error(f"--{name} needs --{needed}")
    if parsed.json and parsed.output_dir:
        parser.error("--json prints, and --output_dir writes files instead: give one of them")


def find_inputs(paths: list[str]) -> list[str]:
    """Replace every folder by the images in it, and every list by the images that it names."""
    from ..data.images import find_images
    from ..data.sources import read_list

    files = []
    for path in paths:
        if os.path.isdir(path):
            found = [str(file) for file in find_images(path)]
        elif path.lower().endswith(".csv"):
            table = read_list(path)
            found = [source["path"] for source in table.dataset[table.image_column]]
        else:
            found = [path]
        if not found:
            raise ValueError(f"{path} holds no images")
        files += found
    return files


def load_predictor(arguments: argparse.Namespace, device):
    """Return the model, ready to predict."""
    import torch

    from ..data.images import ImageConversion
    from ..evaluation.loading import load_model
    from ..evaluation.prediction import MAX_BATCHES, Predictor
    from ..memory import keep_freed_memory

    conversion = ImageConversion(arguments.flatten_transparency, arguments.scale_16_bit)
    if arguments.revision is not None and os.path.exists(arguments.model):
        raise ValueError(
            f"--revision {arguments.revision} is for models on the Hub, and {arguments.model} is on this machine: leave it out"
        )
    hub = {"revision": arguments.revision, "cache_dir": arguments.cache_dir, "token": arguments.token}
    model, image_processor = load_model(
        arguments.model,
        hub,
        subfolder=arguments.subfolder,
        trust_remote_code=arguments.trust_remote_code,
        batch_size=arguments.batch_size,
        num_callers=min(MAX_BATCHES, torch.get_num_threads()),
        torch_options={
            "torch_compile": arguments.torch_compile,
            "device": arguments.device is not None and device.type != "cpu",
        },
    )
    if not model.config.num_labels:
        raise ValueError(f"{arguments.model} has no classifier")
    model = model.to(device)
    if model.device.type == "cpu":
        keep_freed_memory()
    return Predictor(
        model,
        image_processor,
        conversion,
        find_training_conversion(arguments.model, hub, arguments.subfolder),
        arguments.top_k or (5 if arguments.output_dir else 3),
        arguments.label_threshold,
        arguments.batch_size if arguments.torch_compile else None,
    )


def find_training_conversion(source: str, hub: dict, subfolder: str):
    """Return what the record of the training says of transparent and 16-bit images."""
    from ..data.images import ImageConversion
    from ..evaluation.loading import find_model
    from ..utils import read_json

    path = find_model(source, hub, subfolder)
    record = (path if path.is_dir() else path.parent) / "training_run.json"
    if not record.is_file():
        return ImageConversion()
    return ImageConversion(**(read_json(record).get("dataset") or {}).get("image_conversion") or {})


def print_result(path: str, prediction, as_json: bool, is_regression: bool) -> None:
    present = prediction.labels
    if as_json:
        labels = {} if present is None else {"labels": present}
        print(json.dumps({"image": path, "predictions": prediction.scores, **labels}, ensure_ascii=False), flush=True)
        return
    if is_regression:
        cells = [f"{entry['label']} {entry['score']:.6g}" for entry in prediction.scores]
    else:
        marks = dict.fromkeys(present or (), "*")
        cells = [
            f"{score:6.1%}{marks.get(label, ' ')}{label:<16}" for label, score in map(dict.values, prediction.scores)
        ]
    print(f"{path}  {'  '.join(cells)}".rstrip(), flush=True)


@contextlib.contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """End the program where nobody reads its output any more, as `head` does after its lines."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes the output once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def print_predictions(arguments: argparse.Namespace) -> bool:
    """Print what the model says of each image, and return whether all could be read."""
    from ..progress import progress_bar
    from ..utils import check_device

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes cannot print in order: give --output_dir")
    files = find_inputs(arguments.images)
    predictor = load_predictor(arguments, check_device(arguments.device))
    batches = [files[start : start + arguments.batch_size] for start in range(0, len(files), arguments.batch_size)]
    results = predictor.predict_batches(batches, to_sources, len(batches))
    is_regression = predictor.problem_type == "regression"
    num_unreadable = 0
    progress = progress_bar(total=len(files), desc="Predicting", unit=" images")
    with progress, quiet_broken_pipe():
        for paths, predictions in results:
            for path, prediction in zip(paths, predictions):
                if prediction.error is None:
                    print_result(path, prediction, arguments.json, is_regression)
                else:
                    print(f"error: {prediction.error}", file=sys.stderr)
                    num_unreadable += 1
            progress.update(len(paths))
    return num_unreadable == 0


def to_sources(paths: list[str]) -> list[dict]:
    """Return files as entries of an undecoded image column."""
    return [{"path": path, "bytes": None} for path in paths]


def name_file(file: str, source: str) -> str:
    """Return what readers of the predictions get to know of the path of an image: from the folder or list `source` on."""
    from ..local_paths import shorten_path

    folder = source if os.path.isdir(source) else os.path.dirname(source)
    try:
        inside = Path(file).absolute().relative_to(Path(folder).absolute())
    except ValueError:  # a list may name images anywhere
        return shorten_path(file)
    return (Path(shorten_path(source) if folder == source else "") / inside).as_posix()


def load_files(paths: list[str]):
    """Return images as a data set with their `path`, and what tells it from others."""
    import hashlib

    import datasets

    from ..local_paths import shorten_path

    files, names = [], []
    for path in paths:
        found = find_inputs([path])
        files += found
        names += [name_file(file, path) for file in found]
    features = datasets.Features({"path": datasets.Value("string"), "image": datasets.Image(decode=False)})
    dataset = datasets.Dataset.from_dict({"path": names, "image": to_sources(files)}, features=features)
    checksum = hashlib.sha256()
    for file in files:
        checksum.update(f"{file} {os.path.getsize(file) if os.path.exists(file) else None}\n".encode())
    return dataset, {
        "images": [shorten_path(path) for path in paths],
        "num_rows": len(files),
        "checksum": checksum.hexdigest(),
    }


def load_data(arguments: argparse.Namespace):
    """Return the images to predict, the name of their column and of their split, and what tells the data from others."""
    import datasets

    from ..data.datasets import EVALUATION_SPLITS, choose_split
    from ..evaluation.prediction_files import describe_data, find_image_column
    from ..local_paths import name_source

    if arguments.dataset_name is None:
        dataset, data = load_files(arguments.images)
        return dataset, "image", "train", data
    splits = datasets.load_dataset(
        arguments.dataset_name,
        arguments.dataset_config_name,
        streaming=arguments.streaming,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
    )
    choices = [arguments.split] if arguments.split else list(splits) if len(splits) == 1 else EVALUATION_SPLITS
    split = choose_split(splits, choices)
    dataset = splits[split]
    image_column = find_image_column(dataset, arguments.image_column_name)
    data = {
        "dataset_name": name_source(arguments.dataset_name),
        "dataset_config_name": arguments.dataset_config_name,
        "split": split,
        "streaming": arguments.streaming,
        "image_column_name": image_column,
        **describe_data(dataset, image_column),
    }
    return dataset, image_column, split, data


def write_predictions(arguments: argparse.Namespace, accelerator) -> bool:
    """Write what the model says of each image to files, and return whether all could be read."""
    from ..data.labels import shorten
    from ..evaluation import prediction_files
    from ..local_paths import name_source, shorten_path, shorten_value
    from ..output_folder import lock_output_dir_together
    from ..publishing.predictions import push_predictions, write_prediction_card
    from ..utils import check_device

    is_shared = accelerator.num_processes > 1
    if is_shared and arguments.device is not None:
        raise ValueError(f"--device {arguments.device} is for one process: leave it out, each has a device of its own")
    device = accelerator.device if is_shared else check_device(arguments.device)
    output_dir = arguments.output_dir
    with accelerator.main_process_first():  # one process downloads, the others find it done
        predictor = load_predictor(arguments, device)
        dataset, image_column, split, data = load_data(arguments)
    identity = {
        "model": {
            "name": name_source(arguments.model),
            "revision": arguments.revision,
            "checksum": prediction_files.describe_model(predictor),
        },
        "data": data,
        "top_k": predictor.top_k,
        **{name: getattr(arguments, name) for name in ("label_threshold", "flatten_transparency", "scale_16_bit")},
    }
    folder = prediction_files.PredictionFolder(output_dir, identity, arguments.rows_per_file)
    with lock_output_dir_together(output_dir, f"hf-mixer predict --output_dir {output_dir}"):
        if accelerator.is_main_process:
            folder.prepare(num_processes=accelerator.num_processes)
            name = shorten(list(map(shorten_path, arguments.images)), 3) or repr(shorten_value(arguments.dataset_name))
            columns = prediction_files.describe_columns(predictor)
            write_prediction_card(output_dir, shorten_value(arguments.model), name, split, columns)
        accelerator.wait_for_everyone()
        share = (accelerator.process_index, accelerator.num_processes)
        prediction_files.write_predictions(dataset, image_column, predictor, folder, arguments.batch_size, *share)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return True
        counts = folder.finish()
        print(f"{counts['num_images']:,} images, {counts['num_unreadable']:,} of them cannot be read")
        print(f"The predictions are in {output_dir}: load_dataset({str(output_dir)!r})")
        if arguments.push_to_hub:
            url = push_predictions(output_dir, arguments.push_to_hub, arguments.private, arguments.token)
            print(f"and at {url}")
    return counts["num_unreadable"] == 0


def run(arguments: argparse.Namespace) -> None:
    from ..progress import quiet_libraries
    from ..threads import limit_threads
    from ..utils import end_together, one_line_errors

    limit_threads()
    quiet_libraries(has_watcher=arguments.dataset_name is not None and sys.stderr.isatty())
    if arguments.output_dir is None:
        with one_line_errors():
            sys.exit(int(not print_predictions(arguments)))

    from datetime import timedelta

    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # A process that has finished its share waits for the others as long as it takes
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])
    with one_line_errors():
        all_readable = write_predictions(arguments, accelerator)
    end_together(accelerator)
    sys.exit(int(not all_readable))


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
