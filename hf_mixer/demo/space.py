# SPDX-License-Identifier: Apache-2.0
"""A demo Space of a trained model: an app for the Hub that needs transformers and Gradio, and nothing of this package."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData, metadata_load
from yaml import YAMLError

from ..data.labels import problem_type_of
from ..publishing.card import read_model
from ..publishing.records import read_results
from ..publishing.release import find_model_files
from ..publishing.saving import CARD_NAME, OTHER_CARD_NAME
from ..publishing.wording import dataset_name, find_known_data, plain
from ..utils import check_destination, is_hub_id, list_requirements, written_whole
from .preview import draw_preview


GRADIO_VERSION = "6.31.0"
# The app, what it imports, and how it looks
FILES = ("app.py", "answers.py", "saliency.py", "uploads.py", "style.css")
# How the Hub shows a Space in its lists
APPEARANCE: dict[str, Any] = {"emoji": "🧩", "colorFrom": "yellow", "colorTo": "purple"}
PREVIEW = "preview.png"
NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
# What the page is called, by kind of model
TITLES = {
    "single_label_classification": ("{number} kind of {images}", "{number} kinds of {images}"),
    "multi_label_classification": ("{number} label for {images}", "{number} labels for {images}"),
    "regression": ("{number} value read from {images}", "{number} values read from {images}"),
}
README = """---
{metadata}
---

# {title}

Drop an image, see what the model makes of it and what it looked at. `python app.py` runs it anywhere, after
`pip install -r requirements.txt`.

{push}
"""
PUSH = """This folder becomes a Space with

```bash
hf repos create {name} --repo-type space --space-sdk {sdk}
hf upload {name} . --repo-type space
```
"""
THUMBNAIL = """
`preview.png` is shown where somebody shares the Space, once the metadata above have the line
`thumbnail: https://huggingface.co/spaces/NAME/resolve/main/preview.png`, with the name of the Space.
"""


def write_space(
    directory: Path,
    folder: Path,
    model: str | None = None,
    revision: str | None = None,
    examples: Iterable[Path] = (),
) -> None:
    """
    Write the files of a Space into an existing directory, without a preview; see `export_space`.

    `model` is what the Space loads: with `revision` a repository on the Hub, else a folder, as an absolute path or inside
    `directory`. By default it is `folder`, where it lies.
    """
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), directory / name)
    repo_id = model if revision else None
    trained_on = read_results(folder / "training_run.json").get("dataset") or {}
    settings: dict[str, Any] = {
        "model": model or str(folder.resolve()),
        "revision": revision,
        "title": make_title(folder),
        "name": name_model(folder, repo_id),
        "conversion": trained_on.get("image_conversion") or {},
    }
    (directory / "space.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    requirements = [*list_requirements(), "joblib>=1.3", f"gradio>={GRADIO_VERSION}"]
    (directory / "requirements.txt").write_text("\n".join(requirements) + "\n")
    metadata = SpaceCardData(
        title=settings["title"],
        **APPEARANCE,
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        app_file="app.py",
        license=read_license(folder),
        models=[repo_id] if repo_id else None,
        short_description="What an MLP-Mixer sees in an image",
        thumbnail=f"https://huggingface.co/spaces/{repo_id}/resolve/main/{PREVIEW}" if repo_id else None,
    )
    push = PUSH.format(name=repo_id or "NAME", sdk="gradio") + ("" if repo_id else THUMBNAIL)
    text = README.format(metadata=metadata.to_yaml(), title=plain(settings["title"]), push=push)
    (directory / "README.md").write_text(text, encoding="utf-8")
    copy_examples(directory, examples)


def make_title(folder: Path) -> str:
    """Return what the page of the model in `folder` is called, such as "Ten kinds of CIFAR-10 images"."""
    config, _ = read_model(folder)
    data = (read_results(folder / "training_run.json").get("dataset") or {}).get("name") or ""
    name = dataset_name(data) if is_hub_id(data) or find_known_data(data) else ""
    # "Three kinds of beans", and "Ten kinds of CIFAR-10 images"
    images = name if name.endswith("s") else f"{name} images".strip()
    count = config.num_labels
    number = NUMBERS[count].capitalize() if count < len(NUMBERS) else f"{count:,}"
    return TITLES[problem_type_of(config)][count != 1].format(number=number, images=images)


def name_model(folder: Path, repo_id: str | None) -> str:
    return repo_id.split("/")[-1] if repo_id else folder.resolve().name


def read_license(folder: Path) -> str | None:
    """Return the license that the card in a model folder names, if it does."""
    for name in (CARD_NAME, OTHER_CARD_NAME):
        if (folder / name).is_file():
            try:
                license = (metadata_load(folder / name) or {}).get("license")
            except YAMLError as error:
                raise ValueError(f"the metadata of {folder / name} are no YAML: {error}") from error
            if license:
                return license
    return None


def copy_examples(directory: Path, examples: Iterable[Path]) -> list[dict[str, str]]:
    """Copy image files into the folder `examples` of a directory, and return their names there and before."""
    (directory / "examples").mkdir()
    copied = []
    for number, example in enumerate(examples, start=1):
        file = f"examples/{number}{example.suffix.lower()}"
        shutil.copyfile(example, directory / file)
        copied.append({"file": file, "name": example.stem})
    return copied


def export_space(
    directory: Path,
    folder: Path,
    repo_id: str | None = None,
    revision: str | None = None,
    examples: Sequence[Path] = (),
) -> None:
    """
    Write a Space that is ready to be pushed to the Hub.

    Args:
        directory (`Path`):
            Where to write it. Must not exist yet, or be empty.
        folder (`Path`):
            The trained model. Without `repo_id` its weights, settings and code are copied into the Space.
        repo_id (`str`, *optional*), revision (`str`, *optional*):
            The same model on the Hub and its commit, for the Space to load.
        examples (`Sequence[Path]`, *optional*):
            Image files to offer to visitors. The preview shows the first one.

    Raises:
        `ValueError`: the directory is not empty, the folder lacks something, or `repo_id` comes without `revision`.
    """
    check_destination(directory)
    if (repo_id is None) != (revision is None):
        raise ValueError("`repo_id` and `revision` go together: a Space runs the code of one commit")
    with written_whole(directory) as space:
        space.mkdir()
        write_space(space, folder, repo_id or "model", revision, examples)
        draw_preview(make_title(folder), folder, next(iter(examples), None)).save(space / PREVIEW, optimize=True)
        if repo_id is None:
            (space / "model").mkdir()
            for name, path in find_model_files(folder).items():
                shutil.copyfile(path, space / "model" / name)
