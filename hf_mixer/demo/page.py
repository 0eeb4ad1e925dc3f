# SPDX-License-Identifier: Apache-2.0
"""A static page of a trained model, which runs in the visitor's browser: no server, and no request to another host."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import SpaceCardData
from PIL.Image import Resampling

from ..configuration_mixer import MixerConfig, to_pair
from ..data.labels import problem_type_of
from ..deployment import export_model
from ..deployment.image_steps import FILTERS, read_steps
from ..deployment.transformers_js import DTYPE_NAMES, FILE_NAMES
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..modeling_mixer import MixerForImageClassification
from ..publishing.card import read_model
from ..publishing.records import read_results
from ..utils import check_destination, written_whole
from .npm import NpmPackage
from .space import APPEARANCE, PUSH, copy_examples, make_title, name_model, read_license


ASSETS = Path(__file__).with_name("browser")
# transformers.js and the runtime that this version of it was built with; the second build of the runtime knows WebGPU
PACKAGES = (
    NpmPackage(
        "@huggingface/transformers",
        "4.3.1",
        "Apache-2.0",
        "5+voSeUCFK6PCKlY15dPhNOKq3/zOTxDN7oC+Wy9dFb1QZ0TSQomZRRy7URRK8YRuUoE9fGMQTTPC5d/pWBJhA==",
        ("dist/transformers.min.js", "LICENSE"),
    ),
    NpmPackage(
        "onnxruntime-web",
        "1.31.0-dev.20260914-8d85527a0",
        "MIT",
        "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
        tuple(
            f"dist/ort-wasm-simd-threaded{build}.{suffix}" for build in ("", ".asyncify") for suffix in ("mjs", "wasm")
        ),
    ),
)
# Headers with which the model may use several cores. The Hub sends them when the README asks for it.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}
README = """---
{metadata}
---

A page on which the model runs in the visitor's own browser: drop an image, see what the model makes of it and what
mattered. Images stay on the visitor's device. `python -m http.server` in this folder shows it at http://localhost:8000;
any static web server will do, with HTTPS for the camera and for use without a network.

`model` holds the network as ONNX models in the layout of transformers.js; the page itself resizes images for it.
`library` holds files of two packages from npm: {packages}. Their licenses are
`library/LICENSE` and `LICENSE-onnxruntime-web.txt`.

{push}"""


def describe_processing(config: MixerConfig, processor: MixerImageProcessorPil) -> dict[str, Any]:
    """
    Return how the page makes the input of the model from an image.

    Raises:
        `ValueError`: it does not know how to do what the image processor does, or the result does not fit the model.
    """
    steps = read_steps(processor, config.num_channels, *to_pair(config.image_size))
    if steps.size is None:
        raise ValueError("the page resizes images: expected an image processor with `do_resize=True`")
    resized = [steps.size] * 2 if isinstance(steps.size, int) else steps.size
    if any(crop > side for crop, side in zip(steps.crop_size or (), resized)):
        raise ValueError(f"the page pads no images: expected a `crop_size` within {resized}, got {steps.crop_size}")
    return {**asdict(steps), "resample": FILTERS[Resampling(steps.resample)]}


def describe_model(folder: Path, files: Path, repo_id: str | None, examples: list[dict[str, str]]) -> dict[str, Any]:
    """Return `page.json`: all that the page knows of the model, which has been exported to `files`."""
    config, processor = read_model(folder)
    with torch.device("meta"):
        num_parameters = MixerForImageClassification(config).num_parameters()
    trained_on = read_results(folder / "training_run.json").get("dataset") or {}
    sizes = {name: files / "onnx" / FILE_NAMES[dtype] for dtype, name in DTYPE_NAMES.items()}
    return {
        "title": make_title(folder),
        "name": name_model(folder, repo_id),
        "model": repo_id,
        "problem_type": problem_type_of(config),
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "thresholds": config.label_thresholds,
        "parameters": num_parameters,
        "image_size": to_pair(config.image_size),
        "processing": describe_processing(config, processor),
        "conversion": trained_on.get("image_conversion") or {},
        "files": {name: path.stat().st_size for name, path in sizes.items() if path.is_file()},
        "examples": examples,
    }


def write_readme(page: Path, folder: Path, repo_id: str | None) -> None:
    """Write the card of the Space."""
    metadata = SpaceCardData(
        title=make_title(folder),
        **APPEARANCE,
        sdk="static",
        license=read_license(folder),
        app_file="index.html",
        models=[repo_id] if repo_id else None,
        short_description="An MLP-Mixer that runs in your browser",
        custom_headers=HEADERS,
    )
    packages = " and ".join(f"`{package.name}` {package.version} ({package.license})" for package in PACKAGES)
    push = PUSH.format(name=repo_id or "NAME", sdk="static")
    text = README.format(metadata=metadata.to_yaml(), packages=packages, push=push)
    (page / "README.md").write_text(text, encoding="utf-8")


def export_page(directory: Path, folder: Path, repo_id: str | None = None, examples: Iterable[Path] = ()) -> None:
    """
    Write a static page, or Space, with the model in it.

    Args:
        directory (`Path`):
            Where to write it. Must not exist yet, or be empty.
        folder (`Path`):
            The trained model.
        repo_id (`str`, *optional*):
            The same model on the Hub, for the page to link to.
        examples (`Iterable[Path]`, *optional*):
            Image files to offer to visitors.

    Raises:
        `ValueError`: the directory is not empty, the folder lacks something, the page cannot do what the image processor
            does, or a package from npm cannot be downloaded. Nothing is written then.
        `ImportError`: what the export to transformers.js needs is not installed.
    """
    check_destination(directory)
    describe_processing(*read_model(folder))
    with written_whole(directory) as page:
        shutil.copytree(ASSETS, page)
        (page / "library").mkdir()
        for package in PACKAGES:
            package.copy_files(page / "library")
        # The network alone: the page makes its input
        processor = MixerImageProcessorPil.from_pretrained(folder, do_resize=False, do_center_crop=False)
        export_model(str(folder), page / "model", "transformers.js", image_processor=processor)
        # It is written for who takes images of any size
        (page / "model/README.md").unlink()
        settings = describe_model(folder, page / "model", repo_id, copy_examples(page, examples))
        (page / "page.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_readme(page, folder, repo_id)
