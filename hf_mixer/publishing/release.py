# SPDX-License-Identifier: Apache-2.0
"""What of a trained folder goes to the Hub: an allow-list, and what must not be in any of its files."""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..checkpoints.loading import check_own_folder
from ..evaluation.results import EXAMPLES
from ..utils import read_json
from .card import PICTURES, create_card, read_folder
from .exports import HANDLER_NAME, REQUIREMENTS_NAME, find_extra_files, write_extras
from .foreign import (
    FORBIDDEN_FILES,
    PACKAGE,
    WEIGHTS_SUFFIX,
    check_settings,
    find_modules,
    refuse_foreign_code,
    refuse_unusual_files,
)
from .private import refuse_private
from .records import read_results
from .saving import CARD_NAME, OTHER_CARD_NAME, merge_cards, read_cards, write_cards
from .wording import label_names, refuse_control_characters


# Each goes up where the folder has it
OPTIONAL_FILES = (
    "training_run.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "evaluation.json",
    *PICTURES,
    *EXAMPLES,
    "LICENSE",
    "NOTICE",
)
# Those of them that name paths
RECORDS = ("training_run.json", "trainer_state.json", "evaluation.json", CONFIG_NAME)
# What is opened of a folder, beside all files that are called like this
OPENED = (*OPTIONAL_FILES, CARD_NAME, OTHER_CARD_NAME, HANDLER_NAME, REQUIREMENTS_NAME)
OPENED_SUFFIXES = (".json", ".py", WEIGHTS_SUFFIX)


def prepare_release(
    folder: Path,
    directory: Path,
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    extras: Sequence[str] = (),
    trust_code: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    given: Collection[str] = (),
    cards: Mapping[str, str] | None = None,
    overwrite_card: bool = False,
) -> list[str]:
    """
    Put into `directory` what goes to the Hub of a folder: links to its files, the code that they need, and a card, in which
    everything that its owner has written stays.

    Exports go into folders of their own. One that the folder holds in the same place is compared with the model and goes up
    as it is. The others are made, in float32.

    Args:
        folder (`Path`):
            A folder with a trained `MixerForImageClassification`, as `hf-mixer train` writes it. It stays as it is.
        directory (`Path`):
            An empty directory.
        repo_id (`str`):
            The repository that the card speaks of.
        revision (`str`, *optional*):
            The tag or branch that the card speaks of.
        token (`str`, *optional*):
            The token in use. It must not occur in any file, nor must others that are known by their form.
        extras (`Sequence[str]`, *optional*):
            What else goes up: exports, by their formats `"onnx"`, `"openvino"`, `"executorch"` and `"transformers.js"`, and
            `"handler"`, which is for Inference Endpoints.
        trust_code (`bool`, *optional*, defaults to `False`):
            Whether code may go up that is not that of this package.
        license (`str`, *optional*), base_model (`str`, *optional*):
            See `create_card`.
        given (`Collection[str]`, *optional*):
            Which of these replace what a card has.
        cards (`Mapping[str, str]`, *optional*):
            The cards that the Hub holds, by their names.
        overwrite_card (`bool`, *optional*, defaults to `False`):
            Whether what is generated, and the card in the folder, replaces edits that contradict it.

    Returns:
        `list[str]`: Names in the folder that stay behind; those of folders end in `/`.

    Raises:
        `ValueError`: the folder lacks something, holds another model, its cards may not be replaced, an export is of
            another model, a file is a link, holds a secret, or what this machine calls itself, or there is foreign code.
        `ImportError`: something that an export needs is not installed.
    """
    sources = find_model_files(folder, trust_code)
    if extras and read_folder(folder)[0].name != "classifier":
        raise ValueError(
            f"{folder} holds no image classifier, which exports and the handler are made of: leave out --with"
        )
    sources |= {name: folder / name for name in OPTIONAL_FILES if (folder / name).is_file()}
    sources |= find_extra_files(folder, extras, trust_code)
    for name, source in sources.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        put(source, directory / name)
    write_extras(folder, directory, extras)
    card = create_card(folder, repo_id, revision, directory, license, base_model)
    merged = merge_cards(str(card), read_cards(folder), cards or {}, given, overwrite_card)
    write_cards(merged, directory)
    refuse_private(directory, folder, token, {CARD_NAME})
    return list_left_out(folder, {*sources, CARD_NAME, OTHER_CARD_NAME})


def put(source: Path, destination: Path) -> None:
    """Put a file where it goes up from: a link to it, or what it says without local paths."""
    record = read_results(source) if source.name in RECORDS else {}
    if record and record != read_json(source):
        destination.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return
    try:
        destination.symlink_to(source.resolve())
    except OSError:  # Windows allows links to some users only
        shutil.copyfile(source, destination)


def list_left_out(folder: Path, taken: set[str]) -> list[str]:
    """Return the names in a folder that are not among `taken`; those of folders of which nothing is end in `/`."""
    parents = {name.split("/")[0] for name in taken if "/" in name}
    names = []
    for path in folder.iterdir():
        if path.name in parents:
            inside = (file.relative_to(folder).as_posix() for file in path.rglob("*") if file.is_file())
            names += [name for name in inside if name not in taken]
        elif path.name not in taken:
            names.append(f"{path.name}/" if path.is_dir() else path.name)
    return sorted(names)


def find_model_files(folder: Path, trust_code: bool = False) -> dict[str, Path]:
    """
    Return, by their names in a repository, the files that it takes to run the model in `folder` without this package.

    Raises:
        `ValueError`: the folder lacks something, or holds another model, links, labels that cannot be shown, or code that is
            not that of this package, or its weights are too small for the model.
    """
    if folder.is_dir():
        for name in FORBIDDEN_FILES:
            if os.path.lexists(folder / name):
                raise ValueError(f"{folder / name} can load what does not go up, or replaces what does: remove it")
        entries = [path.name for path in folder.iterdir()]
        refuse_unusual_files(folder, [name for name in entries if name in OPENED or name.endswith(OPENED_SUFFIXES)])
    if (folder / CONFIG_NAME).is_file() and (folder / IMAGE_PROCESSOR_NAME).is_file():
        check_settings(folder)
        check_own_folder(folder)
    kind, config, _ = read_folder(folder)
    refuse_control_characters(label_names(config))
    names = [CONFIG_NAME, IMAGE_PROCESSOR_NAME]
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names.append(SAFE_WEIGHTS_NAME)
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        names += [SAFE_WEIGHTS_INDEX_NAME, *list_shards(folder / SAFE_WEIGHTS_INDEX_NAME)]
    else:
        raise ValueError(f"{folder} holds no weights: expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
    code = find_code(folder, find_modules(folder), trust_code)
    files = {name: folder / name for name in names} | code
    missing = sorted(name for name, source in files.items() if not source.is_file())
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which other files of it refer to")
    size = sum(source.stat().st_size for name, source in files.items() if name.endswith(WEIGHTS_SUFFIX))
    with torch.device("meta"):  # without memory for any weights
        num_parameters = kind.model_class(config).num_parameters()
    if num_parameters > size:
        raise ValueError(
            f"{folder / CONFIG_NAME} describes a model of {num_parameters:,} parameters, and the weights beside it have "
            f"{size:,} bytes: save the model again"
        )
    return files


def list_shards(index: Path) -> list[str]:
    """
    Return the files that the index of weights in several files names.

    Raises:
        `ValueError`: it names none, or others than those beside it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} does not say which file holds which weights (weight_map): save the model again")
    shards = list(dict.fromkeys(map(str, weight_map.values())))
    for shard in shards:
        if not re.fullmatch(rf"[\w-][\w.-]*{re.escape(WEIGHTS_SUFFIX)}", shard):
            raise ValueError(
                f"{index} names weights in {shard!r}: expected {WEIGHTS_SUFFIX} files beside it. Save the model again with "
                "`save_pretrained`"
            )
    return shards


def find_code(folder: Path, modules: list[str], trust_code: bool) -> dict[str, Path]:
    """
    Return, by their names, the files of modules and of those that they import: the folder's own where it has any, else those
    of this package.

    Raises:
        `ValueError`: the folder's own are not those of this package and not trusted, or import from other folders.
    """
    pending = list(modules)
    root = folder if any((folder / f"{module}.py").is_file() for module in pending) else PACKAGE
    files: dict[str, Path] = {}
    while pending:
        module = pending.pop()
        path = root / f"{module}.py"
        if path.name in files:
            continue
        files[path.name] = path
        if path.is_file():
            if root == folder and not trust_code:
                own = PACKAGE / path.name
                way_out = "save the model and its image processor again with `save_pretrained` of this package"
                refuse_foreign_code(path, own.read_bytes() if own.is_file() else None, way_out)
            imports = get_relative_imports(path)
            outside = [name for name in imports if not re.fullmatch(r"\w+", name)]
            if outside:
                raise ValueError(
                    f"{path} imports .{outside[0]}, which is not beside it: only code in {folder} can go up"
                )
            pending += imports
    return files
