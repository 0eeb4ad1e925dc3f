# SPDX-License-Identifier: Apache-2.0
"""
Classify images with a trained model.

    hf-mixer predict outputs/photos photo.jpg                # a table
    hf-mixer predict outputs/photos folder/ --json           # one line of JSON per image

A folder stands for all images below it. An image that cannot be read is named on standard error, the others are still
classified, and the exit code is 1.
"""

import argparse
import json
import os
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", metavar="FOLDER", help="a trained model: a folder, a file, or a name on the Hub, in any layout"
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top_k", type=int, default=3, help="how many labels to give per image (default: 3)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--device", help="device to run on (default: an accelerator if there is one)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image instead of a table")
    return parser.parse_args(arguments)


def find_inputs(paths: list[str]) -> list[str]:
    """Replace every folder by the images in it."""
    from ..data.images import find_images

    files = []
    for path in paths:
        found = [str(file) for file in find_images(path)] if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"the folder {path} holds no images")
        files += found
    return files


def classify(model, pixel_values, top_k: int) -> list[list[dict]]:
    """Return the `top_k` labels of each image with their scores, the best first."""
    import torch

    with torch.inference_mode():
        logits = model(pixel_values.to(model.device)).logits.float()
    multi_label = model.config.problem_type == "multi_label_classification"
    scores = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
    best = scores.topk(min(top_k, scores.shape[-1]))
    return [
        [{"label": model.config.id2label[index], "score": round(score, 6)} for index, score in zip(indices, values)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist())
    ]


def print_result(path: str, predictions: list[dict], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"image": path, "predictions": predictions}, ensure_ascii=False), flush=True)
    else:
        labels = "  ".join(f"{prediction['score']:6.1%} {prediction['label']:<16}" for prediction in predictions)
        print(f"{path}  {labels}".rstrip(), flush=True)


def run(arguments: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..checkpoints import load_checkpoint
    from ..data.images import open_image
    from ..utils import one_line_errors

    with one_line_errors():
        files = find_inputs(arguments.images)
        device = arguments.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        model, image_processor = load_checkpoint(arguments.model, revision=arguments.revision)
        model.to(device)
        if not model.config.num_labels:
            raise ValueError(f"{arguments.model} has no classifier")
        if min(arguments.batch_size, arguments.top_k) < 1:
            raise ValueError("--batch_size and --top_k have to be at least 1")

    failed = False
    batches = range(0, len(files), arguments.batch_size)
    for start in tqdm(batches, "Classifying", disable=len(batches) == 1):
        paths, images = [], []
        for path in files[start : start + arguments.batch_size]:
            try:
                images.append(image_processor(open_image(path), return_tensors="pt")["pixel_values"])
                paths.append(path)
            except ValueError as error:
                print(f"error: {path}: {error}", file=sys.stderr)
                failed = True
        if images:
            results = classify(model, torch.cat(images), arguments.top_k)
            for path, predictions in zip(paths, results):
                print_result(path, predictions, arguments.json)
    sys.exit(int(failed))


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
