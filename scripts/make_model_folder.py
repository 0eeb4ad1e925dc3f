# SPDX-License-Identifier: Apache-2.0
"""
Make a folder of a trained model in half precision, such as those in model_cards. `hf-mixer publish` adds the code to it.

    python scripts/make_model_folder.py outputs/cifar10-nano model_cards/mixer-nano-cifar10 --dataset_name uoft-cs/cifar10

The folder holds the weights in `--dtype`, the configuration, the image processor, the record of the training and the
card. What follows `--dataset_name` (or `--eval_dir`) goes to scripts/evaluate.py, which measures the weights as they
are in the folder. On a folder that exists, everything is written anew.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from hf_mixer import load_checkpoint
from hf_mixer.publishing import create_card
from hf_mixer.training.curves import CURVES_NAME
from hf_mixer.training.record import RECORD_NAME
from hf_mixer.utils import one_line_errors


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a trained model: the output folder of `hf-mixer train`")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="type of the weights"
    )
    return parser.parse_known_args()


def main():
    arguments, evaluation_arguments = parse_arguments()
    with one_line_errors():
        model, image_processor = load_checkpoint(arguments.source, dtype=arguments.dtype)
        model.save_pretrained(arguments.folder)
        image_processor.save_pretrained(arguments.folder)
        for path in arguments.folder.glob("*_mixer.py"):
            path.unlink()
        for name in (RECORD_NAME, CURVES_NAME):
            path = Path(arguments.source) / name
            if path.is_file() and path.resolve() != (arguments.folder / name).resolve():
                shutil.copy(path, arguments.folder / name)
    if evaluation_arguments:
        command = [sys.executable, Path(__file__).parent / "evaluate.py", arguments.folder, *evaluation_arguments]
        if subprocess.run(command).returncode:
            sys.exit("error: the evaluation failed, see above; the card is not written")
    with one_line_errors():
        create_card(arguments.folder).save(arguments.folder / "README.md")
    size = sum(path.stat().st_size for path in arguments.folder.glob("*.safetensors"))
    print(f"{arguments.folder}: {size / 1e6:.2f} MB of weights in {arguments.dtype}")


if __name__ == "__main__":
    main()
