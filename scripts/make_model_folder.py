# SPDX-License-Identifier: Apache-2.0
"""
Make a folder of a trained model, such as those in model_cards.

    python scripts/make_model_folder.py outputs/cifar10-nano model_cards/mixer-nano-cifar10 --dataset_name uoft-cs/cifar10

The folder holds the weights in float32, which computes fast and exactly on every processor, the configuration, the image
processor, the record of the training, the pictures and the card, but no code, which `hf-mixer publish` adds. What follows
`--dataset_name` (or `--eval_dir`) goes to `hf-mixer evaluate`, which measures the weights as they are in the folder. In a
folder that exists, everything is written anew.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image

from hf_mixer import load_checkpoint
from hf_mixer.commands import evaluate
from hf_mixer.evaluation.results import EXAMPLES
from hf_mixer.publishing import create_card, save_card
from hf_mixer.training.curves import CURVES_NAME
from hf_mixer.training.record import RECORD_NAME
from hf_mixer.utils import one_line_errors


# Pictures that stay exactly as they are
EXACT = ("predictions.png", *EXAMPLES)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a trained model: the output folder of hf-mixer train")
    parser.add_argument("folder", type=Path, help="the folder to make")
    return parser.parse_known_args()


def make_small(path: Path) -> None:
    """Save a picture in fewer bytes: most in 256 colors, which lines and letters hardly need."""
    image: Image.Image = Image.open(path)
    if path.name not in EXACT:
        # Nothing in them is transparent
        image = image.convert("RGB").quantize(256, kmeans=5, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def main():
    arguments, evaluation_arguments = parse_arguments()
    source, folder = arguments.source, arguments.folder
    # Before anything is written, because it may refuse them
    evaluation = evaluate.parse_arguments([str(folder), *evaluation_arguments])
    with one_line_errors():
        model, image_processor = load_checkpoint(str(source), dtype="float32")
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        for path in folder.glob("*_mixer.py"):
            path.unlink()
        for name in (RECORD_NAME, CURVES_NAME):
            if (source / name).is_file() and source.resolve() != folder.resolve():
                shutil.copy(source / name, folder / name)
    if evaluation_arguments:
        evaluate.run(evaluation)
    with one_line_errors():
        for path in folder.glob("*.png"):
            make_small(path)
        card = save_card(create_card(folder), folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: {size / 1e6:.2f} MB of weights, card in {card.name}")


if __name__ == "__main__":
    main()
