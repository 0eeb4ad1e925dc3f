# SPDX-License-Identifier: Apache-2.0
"""The folder with the results of an evaluation, and what of it a new evaluation may replace."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..local_paths import name_source
from ..utils import is_hub_id, read_json


RESULTS_NAME = "evaluation.json"
RUN_NAME = "training_run.json"
# What training and evaluation call the data set that ships with scikit-learn
DIGITS = "scikit-learn digits"
# All pictures of an evaluation; each has those that fit its results
PICTURES = (
    "confusion_matrix.png",
    "confused_pairs.png",
    "per_class.png",
    "predictions.png",
    "mistakes.png",
    "calibration.png",
    "regression.png",
)
# Names of the image that goes with the model as an example of what it recognizes
EXAMPLES = ("example.png", "example.jpg")
# Those of a file that does not list its pictures
FIRST_PICTURES = ("confusion_matrix.png", "calibration.png")


def find_home(model: str | os.PathLike) -> Path:
    """Return the folder of a model, which is given by that folder or by a file in it."""
    return Path(model).parent if Path(model).is_file() else Path(model)


def read_training_data(model: str | os.PathLike) -> dict[str, Any]:
    """Return what `training_run.json` in the folder of a model says of the data; nothing where there is no such file."""
    path = find_home(model) / RUN_NAME
    return (read_json(path).get("dataset") or {}) if path.is_file() else {}


def check_replaceable(
    folder: Path, dataset: dict[str, Any], trained_on: dict[str, Any], overwrite: bool = False
) -> None:
    """
    Refuse to write results where they would replace more important ones.

    Results on the same data are replaced, but not those on all images by those on a part. Results on other data are replaced
    only by those on the model's own: the data set that it was trained on, except for the split of the training itself.

    Args:
        folder (`Path`):
            Where the results are to go.
        dataset (`dict`):
            `name`, `config`, `split` (`None` as long as it is not known), `max_eval_samples` (`None` for all images) and, of
            local files, `fingerprint` of the data to evaluate on.
        trained_on (`dict`):
            What `read_training_data` says of the model, if its folder is the one for the results.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace any results. Files of other programs are never replaced.

    Raises:
        `ValueError`: the folder is a file, or holds results or files that have to stay.
    """
    if folder.is_file():
        raise ValueError(f"--output_dir {folder} is a file: choose a folder")
    previous = read_previous(folder)
    own = written(previous)
    foreign = [name for name in (RESULTS_NAME, *PICTURES, *EXAMPLES) if (folder / name).exists() and name not in own]
    if foreign:
        raise ValueError(
            f"{folder} holds {', '.join(foreign)}, which no evaluation has written: choose another folder with "
            "--output_dir, or move what is there"
        )
    if overwrite:
        return
    ways_out = "choose another folder with --output_dir, or replace it with --overwrite"
    if not previous:
        if trained_on.get("name") and not may_come_first(dataset, trained_on):
            raise ValueError(
                f"the model in {folder} was trained on {trained_on['name']}, and {describe(dataset)} would become its "
                "result: choose another folder with --output_dir, or say so with --overwrite"
            )
        return
    measured = previous["dataset"]
    if is_same(dataset, measured):
        if dataset.get("max_eval_samples") and not measured.get("max_eval_samples"):
            raise ValueError(
                f"{folder / RESULTS_NAME} holds the result on all images of {describe(measured)}, and this one would be of "
                f"{dataset['max_eval_samples']} images: {ways_out}"
            )
    elif not is_own(dataset, trained_on) or is_own(measured, trained_on):
        is_named_alike = is_same_name(dataset["name"], measured["name"])
        files = ", but of other files" if is_named_alike and has_other(dataset, measured, "fingerprint") else ""
        raise ValueError(
            f"{folder / RESULTS_NAME} holds the result on {describe(measured)}, and this one would be on "
            f"{describe(dataset)}{files}: {ways_out}"
        )


def read_previous(folder: Path) -> dict[str, Any]:
    """Return the results in a folder; nothing where there are none, or where another program wrote a file of that name."""
    path = folder / RESULTS_NAME
    results = read_json(path) if path.is_file() else {}
    dataset, versions = results.get("dataset"), results.get("versions")
    is_ours = isinstance(dataset, dict) and "name" in dataset and isinstance(versions, dict) and "hf_mixer" in versions
    return results if is_ours else {}


def written(previous: dict[str, Any]) -> list[str]:
    """Return the files that belong to the results in a folder."""
    if not previous:
        return []
    example = previous.get("example")
    named = [*previous.get("pictures", FIRST_PICTURES), example.get("file") if isinstance(example, dict) else None]
    # Of what the file names only these: it may come from somebody else, and what it names is removed
    return [RESULTS_NAME, *(name for name in (*PICTURES, *EXAMPLES) if name in named)]


def may_come_first(dataset: dict[str, Any], trained_on: dict[str, Any]) -> bool:
    """Whether a model may get its first result on this data: its own, or local images if it was trained on such."""
    names = (dataset["name"], trained_on["name"])
    return is_same_name(*names) or not any(is_hub_id(name) or name == DIGITS for name in names)


def is_training_data(dataset: dict[str, Any], trained_on: dict[str, Any]) -> bool:
    """Whether a model was trained on the same split of the same data set."""
    split = dataset.get("split")
    return split is not None and split == trained_on.get("train_split") and is_same(dataset, trained_on)


def is_own(dataset: dict[str, Any], trained_on: dict[str, Any]) -> bool:
    """Whether a model was trained on the same data set, but not on the same split."""
    return is_same({**dataset, "split": None}, trained_on) and not is_training_data(dataset, trained_on)


def is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """
    Whether two results are about the same split of the same data set; an unknown split may be the same, and so may a folder of
    that name, where it is not recorded which files it holds.
    """
    return (
        is_same_name(first["name"], second.get("name"))
        and first.get("config") == second.get("config")
        and not has_other(first, second, "split")
        and not has_other(first, second, "fingerprint")
    )


def has_other(first: dict[str, Any], second: dict[str, Any], key: str) -> bool:
    """Whether two results differ in something that is known of both."""
    return len({first.get(key), second.get(key)} - {None}) == 2


def is_same_name(first: str, second: str | None) -> bool:
    """Whether two data sets have the same name in records, as a folder or file has wherever it lies."""
    return second is not None and name_source(first) == name_source(second)


def fingerprint_files(path: str | os.PathLike) -> str:
    """
    Return what tells a folder or file from others of its name, wherever it lies: a checksum of the names and sizes of the
    files in the folder, or of the content of the file.
    """
    checksum = hashlib.sha256()
    if os.path.isfile(path):
        checksum.update(Path(path).read_bytes())
    for folder, folders, files in os.walk(str(path)):
        folders.sort()
        for file in sorted(files):
            full = os.path.join(folder, file)
            if not file.startswith(".") and os.path.isfile(full):
                name = os.path.relpath(full, path)
                checksum.update(
                    f"{name} {os.path.getsize(full)}\n".replace(os.sep, "/").encode(errors="surrogateescape")
                )
    return checksum.hexdigest()


def describe(dataset: dict[str, Any]) -> str:
    config = f" ({dataset['config']})" if dataset.get("config") else ""
    split = f", split {dataset['split']}" if dataset.get("split") else ""
    return f"{dataset.get('name')}{config}{split}"


def write_results(
    folder: Path,
    results: dict[str, Any],
    draw: Callable[[Path], list[str]],
    save_example: Callable[[Path], dict[str, Any] | None] = lambda folder: None,
) -> None:
    """
    Write results and pictures into a folder, in place of those that are there.

    Args:
        folder (`Path`):
            The folder. It is created if it is missing.
        results (`dict`):
            The results, ready for JSON. The names of the pictures and the example are added.
        draw (`Callable`):
            Draws the pictures into a folder, and returns their names.
        save_example (`Callable`, *optional*):
            Saves an image as an example into a folder, and returns its name as `file` and what else is to be said of it;
            `None` if there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as temporary:
        pictures = draw(Path(temporary))
        results, files = {**results, "pictures": pictures}, [RESULTS_NAME, *pictures]
        example = save_example(Path(temporary))
        if example is not None:
            results["example"] = example
            files.append(example["file"])
        Path(temporary, RESULTS_NAME).write_text(to_json(results), encoding="utf-8")
        stale = set(written(read_previous(folder))).difference(files)
        # First the file that says whose pictures they are
        for name in files:
            Path(temporary, name).replace(folder / name)
        for name in stale:
            (folder / name).unlink(missing_ok=True)


def to_json(results: dict[str, Any]) -> str:
    """Return JSON with one line per label, row and bin."""

    def lines(value):
        if not isinstance(value, list) or not value:
            return json.dumps(value, ensure_ascii=False)
        return "[\n    " + ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {lines(value)}" for key, value in results.items()) + "\n}\n"
