# SPDX-License-Identifier: Apache-2.0
"""What others get to read of local paths: their last part, without the folders, users and hosts before it."""

import os
import re
import shlex
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from .utils import HUB_ID


# Names of folders and files that say nothing without that of the folder around them
SPLITS = ("train", "val", "valid", "validation", "test")
# The home of a user, a host, or the drive of Windows: names that no path keeps
PRIVATE = re.compile(r"(\w:)?[/\\]+(home|users)[/\\]+[^/\\]+|~[^/\\]*|(\w+:)?[/\\]{2}[^/\\]+|\w:|\.*", re.IGNORECASE)
ABSOLUTE = re.compile(r"[/\\~]|\.{1,2}[/\\]|\w:[/\\]")
ON_THE_HUB = ("hf://", "https://huggingface.co/")
# Arguments whose values are paths, whatever these look like. `argparse` takes the beginnings of their names, too.
PATH_ARGUMENTS = (
    *("train_dir", "validation_dir", "eval_dir", "output_dir", "logging_dir", "cache_dir", "train_file"),
    *("validation_file", "eval_file", "recipe", "resume_from_checkpoint", "deepspeed", "fsdp_config"),
)
# A word of a shell as it is written, and a piece of a value that lists several
WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""")
PIECE = re.compile(r"""[^\s,;="'\[\]{}()]+""")


def shorten_path(path: str | os.PathLike) -> str:
    """
    Return the last part of a path. Folders and files called `train`, `test` and the like keep the name of the folder around
    them. The home folder of a user is `~`.
    """
    path = os.fspath(path).rstrip("/\\") or "."
    if is_private(path):
        return "~" if path.strip(".") else path
    *parents, name = re.split(r"[/\\]+", path)
    folder = path[: -len(name)].rstrip("/\\")
    parent = parents[-1] if parents else ""
    if PurePath(name).stem not in SPLITS or is_private(folder) or is_private(parent):
        return name
    return f"{parent}/{name}"


def is_private(path: str) -> bool:
    return PRIVATE.fullmatch(path) is not None or os.path.abspath(path) == str(Path.home())


def looks_local(text: str) -> bool:
    """Whether a text is a path by its looks, which no repository on the Hub has (`owner/name`)."""
    if text.startswith(ON_THE_HUB) or HUB_ID.fullmatch(text):
        return False
    return text.startswith("~") or "/" in text or "\\" in text


def name_source(source: str | os.PathLike) -> str:
    """
    Return a name for records of a model or of data: that of a repository as it is, and a local path as `./` and its last part,
    which tells it from a repository. Two folders of the same name are the same in records.
    """
    source = os.fspath(source)
    return shorten_source(source) if not os.path.exists(source) else f"./{shorten_path(source)}"


def shorten_source(name: str) -> str:
    """Do to a name in a record, maybe from another machine, what `name_source` does."""
    return f"./{shorten_path(name)}" if looks_local(name) else name


def shorten_value(value: Any) -> Any:
    """Return the value of an argument with the last parts of the paths in it; lists and dictionaries too."""
    if isinstance(value, dict):
        return {key: shorten_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_value(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if ABSOLUTE.match(value) or os.path.exists(value):
        return shorten_path(value)
    return PIECE.sub(lambda piece: shorten_path(piece[0]) if looks_local(piece[0]) else piece[0], value)


def shorten_command(command: str, local: Collection[str] = ()) -> str:
    """
    Return a command line with the last parts of the paths in it, and all else as it is. The values of the arguments `local`
    are paths that may look like repositories.
    """
    is_path = False

    def shorten(match: re.Match) -> str:
        nonlocal is_path
        word = shlex.split(match[0])[0]
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if name:
            stem = name.removeprefix("--").replace("-", "_")
            is_path = bool(stem) and any(argument.startswith(stem) for argument in (*PATH_ARGUMENTS, *local))
        short = name + equals + (shorten_path(value) if is_path and value else shorten_value(value))
        return match[0] if short == word else shlex.quote(short)

    return WORD.sub(shorten, command)


# What names a model or data, and what is a path, whatever it looks like
SOURCE_FIELDS = ("name", "base_model", "_name_or_path", "teacher_model")
PATH_FIELDS = ("recipe", "best_model_checkpoint")
# Arguments whose values a record has as well, where those of paths look like none of repositories
SOURCES = {"base_model": "model_name_or_path", "teacher_model": "teacher_model"}


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """
    Return what training_run.json, evaluation.json and other files of a model hold, with the last parts of the paths in it. The
    names of labels stay, whatever they look like.
    """
    local = [name for key, name in SOURCES.items() if record.get(key) and not HUB_ID.fullmatch(str(record[key]))]
    cleaned = {}
    for key, value in record.items():
        if key == "dataset" and isinstance(value, dict):
            value = without_paths(value)
        elif key == "hyperparameters":
            value = shorten_value(value)
        elif isinstance(value, str) and key not in ("hardware", "revision"):  # refs/pr/1 is no path
            if key == "command":
                value = shorten_command(value, local)
            elif key in SOURCE_FIELDS:
                value = shorten_source(value)
            else:
                value = shorten_path(value) if key in PATH_FIELDS else shorten_value(value)
        cleaned[key] = value
    return cleaned
