# SPDX-License-Identifier: Apache-2.0
"""
Export a model to ONNX, OpenVINO, ExecuTorch, torch.export or the layout of transformers.js.

    hf-mixer export outputs/photos photos-onnx --format onnx
    hf-mixer export outputs/photos photos-openvino --format openvino --dtype int8 --calibration_dir photos/train
    hf-mixer export timm/mixer_b16_224.goog_in21k_ft_in1k mixer-b16-browser --format transformers.js

DEST holds the program, its settings and a card, and runs without hf_mixer. Before it is written, images go through the
program, in its own runtime, and through the model. The largest difference, as a share of the largest output, is printed. Above
1e-5 in float32 or 5e-3 in float16 nothing is written, and in int8 where the root of the mean squared difference is above
0.08 of the outputs' standard deviation.

int8 is calibrated on a few hundred images such as the model will get, from --calibration_dir or --dataset_name. Without them,
ONNX programs and ExecuTorch scale activations in every batch, and OpenVINO keeps them in float.

`hf-mixer predict DEST` and `hf-mixer evaluate DEST` run what was exported. Needs `pip install "hf_mixer[train,export]"`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image


SEED = 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, a repository on the Hub, or a checkpoint of Google, timm or Edifice",
    )
    parser.add_argument("destination", metavar="DEST", type=Path, help="the folder to write")
    parser.add_argument(
        "--format", required=True, help="onnx, openvino, executorch, torch (torch.export) or transformers.js"
    )
    parser.add_argument(
        "--dtype", help="float32, float16 or int8 (default: float32; all three for transformers.js, which chooses)"
    )
    parser.add_argument(
        "--dynamic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take batches of any size (default), or of one size",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="with --no-dynamic the size of batches (default: 1), with executorch the largest one (default: 16)",
    )
    parser.add_argument(
        "--base_model", help="the repository of the model on the Hub, for the card (default: SOURCE, where it is one)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a repository on the Hub")
    calibration = parser.add_argument_group("calibration of int8")
    calibration.add_argument("--calibration_dir", type=Path, help="a folder of images")
    calibration.add_argument("--dataset_name", help="instead: a data set on the Hub, or a local folder of one")
    calibration.add_argument("--dataset_config_name", help="the configuration of the data set")
    calibration.add_argument("--split", default="train", help="the split to take images from (default: train)")
    calibration.add_argument(
        "--image_column_name", help="the column of the images (default: the only one with images)"
    )
    calibration.add_argument("--num_calibration_images", type=int, default=300, help="how many to draw (default: 300)")
    parsed = parser.parse_args(arguments)
    if parsed.calibration_dir is not None and parsed.dataset_name is not None:
        parser.error("give either --calibration_dir or --dataset_name")
    if parsed.num_calibration_images < 1:
        parser.error(f"--num_calibration_images has to be at least 1, got {parsed.num_calibration_images}")
    return parsed


def read_calibration_images(parsed: argparse.Namespace) -> "Iterator[Image.Image]":
    """Read images in random order, the same ones every time."""
    import random

    from ..data.images import find_images, open_image

    if parsed.calibration_dir is not None:
        paths = find_images(parsed.calibration_dir)
        if not paths:
            raise ValueError(f"--calibration_dir {parsed.calibration_dir} holds no images")
        for path in random.Random(SEED).sample(paths, min(len(paths), parsed.num_calibration_images)):
            yield open_image(path)
        return
    import datasets

    from ..data.datasets import choose_split
    from ..evaluation.prediction_files import find_image_column

    splits = datasets.load_dataset(parsed.dataset_name, parsed.dataset_config_name)
    dataset = splits[choose_split(splits, [parsed.split])]
    column = find_image_column(dataset, parsed.image_column_name)
    rows = random.Random(SEED).sample(range(len(dataset)), min(len(dataset), parsed.num_calibration_images))
    for row in dataset.cast_column(column, datasets.Image(decode=True)).select(rows):
        yield row[column]


def run(parsed: argparse.Namespace) -> None:
    from ..deployment import export_model
    from ..progress import quiet_libraries
    from ..utils import one_line_errors

    quiet_libraries()
    has_images = parsed.calibration_dir is not None or parsed.dataset_name is not None
    try:
        with one_line_errors():
            if has_images and parsed.dtype != "int8" and parsed.format != "transformers.js":
                raise ValueError("images are for the calibration of int8: add --dtype int8, or leave them out")
            print(f"Exporting {parsed.source}, which takes from seconds to minutes ...", flush=True)
            export = export_model(
                parsed.source,
                parsed.destination,
                parsed.format,
                parsed.dtype,
                dynamic=parsed.dynamic,
                batch_size=parsed.batch_size,
                calibration_images=read_calibration_images(parsed) if has_images else None,
                base_model=parsed.base_model,
                revision=parsed.revision,
            )
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
    for dtype, difference in export.differences.items():
        print(f"{dtype}: largest difference to the model {difference:.1e} of the largest output")
    if export.recipe is not None:
        print(f"int8: {export.recipe}")
    print(f"wrote {parsed.destination}")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
