# SPDX-License-Identifier: Apache-2.0
"""
Draw what a Mixer has learned in its first layers.

    python scripts/plot_weights.py outputs/cifar10
    python scripts/plot_weights.py timm/mixer_b16_224.goog_in21k_ft_in1k --output_dir pictures

Writes `token_mixing.png`, the token-mixing weights on the grid of patches (figure 5 of the paper), and
`patch_embedding.png`, the filters of the patch embedding.
"""

import argparse
from pathlib import Path

import transformers

from hf_mixer import MixerModel, load_checkpoint
from hf_mixer.evaluation.weight_plots import save_filters, save_token_mixing
from hf_mixer.utils import find_output_dir, one_line_errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FOLDER", help="a trained model: a folder, a file, or a name on the Hub")
    parser.add_argument("--output_dir", type=Path, help="where to write the pictures (default: FOLDER)")
    parser.add_argument("--layers", type=int, default=3, help="how many layers to draw at most (default: 3)")
    arguments = parser.parse_args()
    if arguments.layers < 1:
        parser.error(f"--layers has to be at least 1, got {arguments.layers}")

    # Otherwise transformers warns that the classifier is not loaded
    transformers.utils.logging.set_verbosity_error()
    with one_line_errors():
        output_dir = find_output_dir(arguments.model, arguments.output_dir)
        model, _ = load_checkpoint(arguments.model, MixerModel, dtype="float32")
        output_dir.mkdir(parents=True, exist_ok=True)
        token_mixing = [
            layer.token_mixing.fc1.weight.detach().unflatten(1, model.config.grid).numpy()
            for layer in model.layers[: arguments.layers]
        ]
        save_token_mixing(output_dir / "token_mixing.png", token_mixing)
        filters = model.embeddings.patch_embeddings.projection.weight.detach().numpy()
        save_filters(output_dir / "patch_embedding.png", filters)
        print(f"token_mixing.png and patch_embedding.png are in {output_dir}")


if __name__ == "__main__":
    main()
