# SPDX-License-Identifier: Apache-2.0
"""
Convert a checkpoint of Google, timm or Edifice into a folder that `from_pretrained` and `pipeline` run, or back.

    python scripts/convert.py mixer_b16.npz outputs/mixer-b16
    python scripts/convert.py timm/mixer_b16_224.goog_in21k_ft_in1k outputs/mixer-b16
    python scripts/convert.py outputs/mixer-b16 mixer_b16.npz --to google

Before a folder is written, one image goes through the source's own tensors in plain NumPy and through the converted
model; the largest difference is printed, and above 1e-5 nothing is written.
"""

import argparse
import logging
from pathlib import Path

from ..checkpoints import convert_checkpoint, export_checkpoint
from ..checkpoints.layouts import LAYOUTS
from ..utils import one_line_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a repository on the Hub")
    parser.add_argument(
        "destination", metavar="DEST", help="what to write: a folder, or a file for google and edifice"
    )
    parser.add_argument("--to", choices=sorted(LAYOUTS), help="write this layout instead of ours")
    parser.add_argument(
        "--image-size", type=int, nargs="+", help="image size of the source, where its patches form no square"
    )
    parser.add_argument("--num-channels", type=int, help="channels of an Edifice source, if neither 3 nor 1")
    parser.add_argument("--labels", type=Path, help="a text file with the name of one label per line")
    parser.add_argument("--revision", help="branch, tag or commit of a repository on the Hub")
    parser.add_argument("--allow-nan", action="store_true", help="accept weights that are not finite")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(format="%(message)s")

    with one_line_errors():
        size = arguments.image_size
        if size is not None and len(size) > 2:
            raise ValueError(f"--image-size takes one or two numbers, got {len(size)}")
        size = size if size is None or len(size) == 2 else size[0]
        labels = arguments.labels.read_text(encoding="utf-8").splitlines() if arguments.labels else None
        common = {
            "num_channels": arguments.num_channels,
            "revision": arguments.revision,
            "allow_nan": arguments.allow_nan,
        }
        if arguments.to is not None:
            id2label = dict(enumerate(labels)) if labels is not None else None
            export_checkpoint(
                arguments.source,
                arguments.destination,
                arguments.to,
                source_image_size=size,
                id2label=id2label,
                ignore_mismatched_sizes=False,
                **common,
            )
        else:
            difference = convert_checkpoint(
                arguments.source, arguments.destination, image_size=size, labels=labels, **common
            )
            if difference is not None:
                print(f"largest difference to the source's own forward pass: {difference:.1e}")
    print(f"wrote {arguments.destination}")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
