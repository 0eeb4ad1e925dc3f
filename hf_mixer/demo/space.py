# SPDX-License-Identifier: Apache-2.0
"""A demo Space of a trained model: an app for the Hub that needs transformers and Gradio, and nothing of this package."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

from ..publishing.card import read_results
from ..publishing.release import find_model_files
from ..utils import check_destination, list_requirements, written_whole


GRADIO_VERSION = "6.31.0"
# How the Hub shows a Space in its lists
APPEARANCE: dict[str, Any] = {"emoji": "🧩", "colorFrom": "yellow", "colorTo": "purple"}
README = """---
{metadata}
---

Drop an image, see what the model makes of it and what it looked at. `python app.py` runs it anywhere, after
`pip install -r requirements.txt`.
"""


def write_space(
    directory: Path,
    folder: Path,
    model: str | None = None,
    revision: str | None = None,
    examples: Iterable[Path] = (),
) -> None:
    """
    Write the files of a Space into an existing directory; see `export_space`.

    `model` is what the Space loads: with `revision` a repository on the Hub, else a folder, as an absolute path or inside
    `directory`. By default it is `folder`, where it lies.
    """
    for name in ("app.py", "saliency.py"):
        shutil.copyfile(Path(__file__).with_name(name), directory / name)
    title = model.split("/")[-1] if model and revision else folder.resolve().name
    trained_on = read_results(folder / "training_run.json").get("dataset") or {}
    settings = {
        "model": model or str(folder.resolve()),
        "revision": revision,
        "title": title,
        "conversion": trained_on.get("image_conversion") or {},
    }
    (directory / "space.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    requirements = [*list_requirements(), "joblib>=1.3", f"gradio>={GRADIO_VERSION}"]
    (directory / "requirements.txt").write_text("\n".join(requirements) + "\n")
    metadata = SpaceCardData(
        title=title,
        **APPEARANCE,
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        app_file="app.py",
        models=[model] if model and revision else None,
        short_description="What an MLP-Mixer sees in an image",
    )
    (directory / "README.md").write_text(README.format(metadata=metadata.to_yaml()), encoding="utf-8")
    copy_examples(directory, examples)


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
    examples: Iterable[Path] = (),
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
        examples (`Iterable[Path]`, *optional*):
            Image files to offer to visitors.

    Raises:
        `ValueError`: the directory is not empty, the folder lacks something, or `repo_id` comes without `revision`.
    """
    check_destination(directory)
    if (repo_id is None) != (revision is None):
        raise ValueError("`repo_id` and `revision` go together: a Space runs the code of one commit")
    with written_whole(directory) as space:
        space.mkdir()
        write_space(space, folder, repo_id or "model", revision, examples)
        if repo_id is None:
            (space / "model").mkdir()
            for name, path in find_model_files(folder).items():
                shutil.copyfile(path, space / "model" / name)
