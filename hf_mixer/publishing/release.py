# SPDX-License-Identifier: Apache-2.0
"""What of a trained folder goes to the Hub: an allow-list, and what must not be in any of its files."""

import codecs
import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..evaluation.results import EXAMPLES
from ..utils import read_json
from .card import PICTURES, create_card, read_folder
from .exports import find_extra_files, write_extras
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
SECRETS = {
    "a Hugging Face token": rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a GitHub token": rb"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",
    "an AWS access key": rb"\bAKIA[0-9A-Z]{16}\b",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{20,}|\b[A-Z_]*(?:API_KEY|TOKEN|SECRET|PASSWORD)=[^\s\"'*$]{8,}",
    # `***`, which `hide_tokens` writes, is none
    "the value of a token": rb"--\w*token[= ][\"']?[\w-]{8,}",
    "a password in an address": rb"\w://[^\s/:@\"']+:[^\s/:@\"']+@",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
# Where the remote code is, for folders that do not carry it
PACKAGE = Path(__file__).parents[1]


def prepare_release(
    folder: Path,
    directory: Path,
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    extras: Sequence[str] = (),
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
            another model, or a file holds a secret.
        `ImportError`: something that an export needs is not installed.
    """
    sources = find_model_files(folder)
    sources |= {name: folder / name for name in OPTIONAL_FILES if (folder / name).is_file()}
    sources |= find_extra_files(folder, extras)
    for name, source in sources.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        try:
            (directory / name).symlink_to(source.resolve())
        except OSError:  # Windows allows links to some users only
            shutil.copyfile(source, directory / name)
    write_extras(folder, directory, extras)
    card = create_card(folder, repo_id, revision, directory, license, base_model)
    merged = merge_cards(str(card), read_cards(folder), cards or {}, given, overwrite_card)
    write_cards(merged, directory)
    refuse_secrets(directory, token)
    return list_left_out(folder, {*sources, CARD_NAME, OTHER_CARD_NAME})


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


def find_model_files(folder: Path) -> dict[str, Path]:
    """
    Return, by their names in a repository, the files that it takes to run the model in `folder` without this package.

    Raises:
        `ValueError`: the folder lacks something, or holds another model, or its labels cannot be shown.
    """
    _, config, _ = read_folder(folder)
    refuse_control_characters(label_names(config))
    names = [CONFIG_NAME, IMAGE_PROCESSOR_NAME]
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names.append(SAFE_WEIGHTS_NAME)
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards = read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()
        names += [SAFE_WEIGHTS_INDEX_NAME, *shards]
    else:
        raise ValueError(f"{folder} holds no weights: expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
    auto_maps = [read_json(folder / name).get("auto_map") for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME)]
    if not all(auto_maps):
        raise ValueError(
            f"{folder} names no code, so nobody could load it without hf_mixer: save the model and its image processor "
            "again with `save_pretrained` of this package"
        )
    code = find_code(folder, json.dumps(auto_maps))
    files = {name: folder / name for name in names} | code
    missing = sorted(name for name, source in files.items() if not source.is_file())
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which other files of it refer to")
    return files


def find_code(folder: Path, auto_map: str) -> dict[str, Path]:
    """
    Return, by their names, the files with the classes in `auto_map`, a JSON text, and those that they import: the folder's
    own where it has any, else those of this package.
    """
    pending = [f"{module}.py" for module in re.findall(r"\b(\w+)\.\w+", auto_map)]
    root = folder if any((folder / name).is_file() for name in pending) else PACKAGE
    files: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        if name not in files and (root / name).is_file():
            pending += [f"{module}.py" for module in get_relative_imports(root / name)]
        files[name] = root / name
    return files


def refuse_secrets(directory: Path, token: str | None = None) -> None:
    """
    Raises:
        `ValueError`: a file, or the header of one with weights, holds `token`, or what looks like a token or a key.
    """
    patterns = {"the token in use": re.escape(token.encode()), **SECRETS} if token else SECRETS
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                # The header has text in it, the tensors that follow have not
                content = file.read(int.from_bytes(file.read(8), "little"))
            else:
                content = file.read()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.replace(b"\0", b"")
        if b"\0" in content:
            # The text in weights and pictures, as searching all of them takes a second for 15 MB
            content = b"\n".join(re.findall(rb"[\t\n\r -~]{8,}", content))
        for kind, pattern in patterns.items():
            match = re.search(pattern, content)
            if match is not None:
                line = content.count(b"\n", 0, match.start()) + 1
                name = path.relative_to(directory).as_posix()
                raise ValueError(
                    f"{name}, line {line}, holds {kind}. Nothing was sent. Remove it from there, and revoke it."
                )
