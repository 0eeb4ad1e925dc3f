# SPDX-License-Identifier: Apache-2.0
"""
Train or fine-tune an MLP-Mixer on labelled images.

    hf-mixer train --output_dir outputs/digits        # the embedded digits
    hf-mixer train --train_dir photos --output_dir outputs/photos
    hf-mixer train --train_file photos.csv --problem_type regression \\
        --model_name_or_path timm/mixer_b16_224.goog_in21k \\
        --output_dir outputs/ages
    accelerate launch scripts/train.py --dataset_name uoft-cs/cifar10 \\
        --variant cifar10 --output_dir outputs/cifar10

The output folder holds the model, its image processor, its code, its labels
and the metrics, ready for `pipeline("image-classification", folder)`.

`--do_train false --do_eval true` measures a trained model, and writes nothing
but eval_results.json. `--do_predict true` predicts the split `test`.
"""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Refuse to write over anything, and return the checkpoint to go on from, if any was asked for."""
    from ..output_folder import refuse_foreign_files
    from ..training.checkpointing import find_checkpoint_to_resume

    resume = training_args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1", "yes"):
        resume = True
    elif resume is not None and str(resume).lower() in ("false", "0", "no"):
        resume = None
    resume = find_checkpoint_to_resume(training_args.output_dir, resume)
    if resume is None:
        refuse_foreign_files(training_args.output_dir)
    return resume


def write_card(output_dir, repo_id: str | None = None) -> None:
    """Write the model card into a trained folder, beside a README.md that a person wrote."""
    from ..publishing.card import create_card, save_card

    path = save_card(create_card(output_dir, repo_id=repo_id), output_dir)
    if path.name != "README.md":
        print(f"README.md was written by hand and stays as it is: the model card is {path}", flush=True)


