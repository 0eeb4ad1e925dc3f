# SPDX-License-Identifier: Apache-2.0
"""
Convert a checkpoint of Google, timm or Edifice into a folder that `from_pretrained` and `pipeline` run, or back.

    hf-mixer convert mixer_b16.npz outputs/mixer-b16
    hf-mixer convert timm/mixer_b16_224.goog_in21k_ft_in1k outputs/mixer-b16
    hf-mixer convert outputs/mixer-b16 mixer_b16.npz --to google

Before a folder is written, one image goes through the source's own tensors in plain NumPy and through the converted
model; the largest difference is printed, and above 1e-5 nothing is written.
"""

import argparse
import logging
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a repository on the Hub")
    parser.add_argument(
        "destination", metavar="DEST", help="what to write: a folder, or a file for google and edifice"
    )
    parser.add_argument("--to", metavar="LAYOUT", help="write this layout instead of ours: google, timm or edifice")
    parser.add_argument(
        "--image_size",
        "--image-size",
        type=int,
        nargs="+",
        help="image size of the source, if its patches form no square",
    )
    parser.add_argument(
        "--num_channels", "--num-channels", type=int, help="channels of an Edifice source, if neither 3 nor 1"
    )
    parser.add_argument("--labels", type=Path, help="a text file with the name of one label per line")
    parser.add_argument("--revision", help="branch, tag or commit of a repository on the Hub")
    parser.add_argument("--allow_nan", "--allow-nan", action="store_true", help="accept weights that are not finite")
    return parser.parse_args(arguments)


def run(parsed: argparse.Namespace) -> None:
    from ..checkpoints import convert_checkpoint, export_checkpoint
    from ..progress import quiet_libraries
    from ..utils import one_line_errors

    quiet_libraries()
    logging.basicConfig(format="%(message)s")
    common = {"num_channels": parsed.num_channels, "revision": parsed.revision, "allow_nan": parsed.allow_nan}
    with one_line_errors():
        size = parsed.image_size
        if size is not None and len(size) > 2:
            raise ValueError(f"--image_size takes one or two numbers, got {len(size)}")
        if size is not None and len(size) == 1:
            size = size[0]
        labels = parsed.labels.read_text(encoding="utf-8").splitlines() if parsed.labels else None
        if parsed.to is not None:
            id2label = dict(enumerate(labels)) if labels is not None else None
            common |= {"source_image_size": size, "id2label": id2label, "ignore_mismatched_sizes": False}
            export_checkpoint(parsed.source, parsed.destination, parsed.to, **common)
        else:
            difference = convert_checkpoint(parsed.source, parsed.destination, size, labels=labels, **common)
            if difference is not None:
                print(f"largest difference to the source's own forward pass: {difference:.1e}")
    print(f"wrote {parsed.destination}")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
