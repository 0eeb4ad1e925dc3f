# SPDX-License-Identifier: Apache-2.0
"""
Measure what a classifier keeps at other image sizes, without any training.

    python scripts/resolution.py outputs/cifar10 --dataset_name uoft-cs/cifar10 --image_size 24 48

The model is resized with `resize_image_size`, the images with its image processor. Prints one line per size.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_mixer import load_checkpoint
from hf_mixer.data import ImageTransform, collate_images, load_image_dataset, prepare_image_dataset
from hf_mixer.scripting import one_line_errors


@torch.inference_mode()
def accuracy(model, loader: DataLoader) -> float:
    """Return the share of images whose most likely label is right."""
    right = total = 0
    for batch in tqdm(loader, leave=False):
        logits = model(batch["pixel_values"].to(model.device)).logits
        right += int((logits.argmax(dim=-1).cpu() == batch["labels"]).sum())
        total += len(logits)
    return right / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FOLDER", help="a trained model: a folder, a file, or a name on the Hub")
    parser.add_argument("--dataset_name", help="a data set on the Hub, or a local folder (default: the digits)")
    parser.add_argument("--split", default="test", help="the split to measure on (default: test)")
    parser.add_argument("--image_size", type=int, nargs="+", required=True, help="sizes, besides the model's own")
    parser.add_argument("--method", choices=["block_diagonal", "interpolate"], help="how to resize (default: by size)")
    parser.add_argument("--batch_size", type=int, default=256, help="images per forward pass (default: 256)")
    arguments = parser.parse_args()

    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    with one_line_errors():
        dataset, _ = prepare_image_dataset(load_image_dataset(arguments.dataset_name))
        if arguments.split not in dataset:
            raise ValueError(f"no split {arguments.split!r} in the data, only {', '.join(dataset)}")
        for size in (None, *arguments.image_size):
            model, processor = load_checkpoint(arguments.model, image_size=size, resize_method=arguments.method)
            data = dataset[arguments.split].with_transform(ImageTransform(processor))
            loader = DataLoader(data, batch_size=arguments.batch_size, collate_fn=collate_images)
            print(
                f"image_size={model.config.image_size}  accuracy={accuracy(model.to(device), loader):.4f}", flush=True
            )


if __name__ == "__main__":
    main()
