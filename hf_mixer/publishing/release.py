# SPDX-License-Identifier: Apache-2.0
"""What of a trained folder goes to the Hub: an allow-list, and what must not be in any of its files."""

import codecs
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


CARD_NAME = "README.md"
# Each goes up where the folder has it
OPTIONAL_FILES = (
    "training_run.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "evaluation.json",
    "training_curves.png",
    "confusion_matrix.png",
    "calibration.png",
    "LICENSE",
    "NOTICE",
)
SECRETS = {
    "a Hugging Face token": rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a GitHub token": rb"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",
    "an AWS access key": rb"\bAKIA[0-9A-Z]{16}\b",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{20,}|\b[A-Z_]*(?:API_KEY|TOKEN|SECRET|PASSWORD)=[^\s\"'*$]{8,}",
    "the value of a token": rb"--\w*token[= ][\"']?(?!\*\*\*)[\w-]{8,}",
    "a password in an address": rb"\w://[^\s/:@\"']+:[^\s/:@\"']+@",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


@dataclass(frozen=True)
class Release:
    """
    What goes up.

    Attributes:
        files (`dict[str, Path | bytes]`):
            By its name in the repository, each file, or the content of one that is made for the repository.
        left_out (`list[str]`):
            Names in the folder that stay behind; those of folders end in `/`.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]

    def open(self, name: str) -> BinaryIO:
        """Open a file, to read bytes."""
        content = self.files[name]
        return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")

    def size(self, name: str) -> int:
        """Return the number of bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare_release(
    folder: str | os.PathLike, repo_id: str, revision: str | None = None, token: str | None = None
) -> Release:
    """
    Choose what of a trained folder goes up, and make its card. The folder stays as it is.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with a trained `MixerForImageClassification`, as `scripts/train.py` writes it.
        repo_id (`str`):
            The repository that the card speaks of.
        revision (`str`, *optional*):
            The tag or branch that the card speaks of.
        token (`str`, *optional*):
            The token in use. It must not occur in any file, nor must others that are known by their form.

    Raises:
        `ValueError`: the folder lacks something, holds another model, or a file holds a secret.
    """
    # Cards are made from results, by more libraries than it takes to choose files
    from .card import create_card

    folder = Path(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in find_files(folder)}
    files[CARD_NAME] = str(create_card(folder, repo_id=repo_id, revision=revision)).encode()
    left_out = sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path.name not in files
    )
    release = Release(dict(sorted(files.items())), left_out)
    refuse_secrets(release, token)
    return release


def find_files(folder: Path) -> list[str]:
    """Return the names of the files that go up, the card aside."""
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    config = read_json(folder, CONFIG_NAME)
    if config.get("architectures") != ["MixerForImageClassification"]:
        raise ValueError(
            f"{folder / CONFIG_NAME} names the architectures {config.get('architectures')}, expected "
            "['MixerForImageClassification']. `model.push_to_hub(...)` uploads any model."
        )
    names = [CONFIG_NAME, IMAGE_PROCESSOR_NAME]
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names.append(SAFE_WEIGHTS_NAME)
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards = read_json(folder, SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()
        names += [SAFE_WEIGHTS_INDEX_NAME, *shards]
    else:
        raise ValueError(f"{folder} holds no weights: expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
    names += find_code(folder, config, read_json(folder, IMAGE_PROCESSOR_NAME))
    missing = sorted({name for name in names if not (folder / name).is_file()})
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which other files of it refer to")
    return sorted({*names, *(name for name in OPTIONAL_FILES if (folder / name).is_file())})


def find_code(folder: Path, config: dict, processor: dict) -> list[str]:
    """Return the names of the files with the code that the configurations refer to, and what these import."""
    if not config.get("auto_map") or not processor.get("auto_map"):
        raise ValueError(
            f"{folder} carries no code, so nobody could load it without hf_mixer: save the model and its image processor "
            "again with `save_pretrained` of this package"
        )
    references = json.dumps([config["auto_map"], processor["auto_map"]])
    names: set[str] = set()
    pending = [f"{module}.py" for module in re.findall(r"\b(\w+)\.\w+", references)]
    while pending:
        name = pending.pop()
        if name not in names and (folder / name).is_file():
            pending += [f"{module}.py" for module in get_relative_imports(folder / name)]
        names.add(name)
    return sorted(names)


def read_json(folder: Path, name: str) -> dict:
    """Read a JSON object that the folder has to hold."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} holds no {name}: expected a trained folder, as `scripts/train.py` writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} has to hold a JSON object, got {type(content).__name__}")
    return content


def refuse_secrets(release: Release, token: str | None = None) -> None:
    """
    Raises:
        `ValueError`: a file, or the header of one with weights, holds `token`, or what looks like a token or a key.
    """
    patterns = {"the token in use": re.escape(token.encode()), **SECRETS} if token else SECRETS
    for name in release.files:
        with release.open(name) as file:
            if name.endswith(".safetensors"):
                # The header has text in it, the tensors that follow have not
                content = file.read(int.from_bytes(file.read(8), "little"))
            else:
                content = file.read()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.replace(b"\0", b"")
        for kind, pattern in patterns.items():
            match = re.search(pattern, content)
            if match is not None:
                line = content.count(b"\n", 0, match.start()) + 1
                raise ValueError(
                    f"{name}, line {line}, holds {kind}. Nothing was sent. Remove it from there, and revoke it."
                )
