# SPDX-License-Identifier: Apache-2.0
"""Where a model card is written: never over one that a person wrote or edited."""

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard


CARD_NAME = "README.md"
# The name of the card where a README.md is somebody's own
OTHER_CARD_NAME = "MODEL_CARD.md"
MARKER = "<!-- Written by hf-mixer, and replaced by it as long as nobody edits it. sha256: {} -->\n"
MARKER_PATTERN = re.compile(re.escape(MARKER).replace(r"\{\}", "([0-9a-f]{64})"))


def sign(card: ModelCard) -> None:
    """Put a line into a card, invisible to its readers, by which `is_generated` recognizes it."""
    card.text = MARKER.format(digest(str(card))) + card.text


def is_generated(text: str) -> bool:
    """Whether a card is as `sign` left it: not written by a person, by another program, nor edited since."""
    marker = MARKER_PATTERN.search(text)
    return marker is not None and digest(text[: marker.start()] + text[marker.end() :]) == marker[1]


def digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def read_card(path: Path) -> str:
    # What is no UTF-8 is no card of ours
    return path.read_text(encoding="utf-8", errors="replace")


def choose_card_name(folder: Path) -> str:
    """
    Return the name of the generated card of a folder: `README.md`, or `MODEL_CARD.md` beside a README.md that is somebody's
    own.

    Raises:
        `ValueError`: both are.
    """
    for name in (CARD_NAME, OTHER_CARD_NAME):
        if not (folder / name).exists() or is_generated(read_card(folder / name)):
            return name
    raise ValueError(
        f"{folder} holds a {CARD_NAME} and a {OTHER_CARD_NAME} that hf-mixer did not write or that were edited, and it "
        "replaces neither: move one of them away to make room for the model card"
    )


def save_card(card: ModelCard, folder: str | os.PathLike) -> Path:
    """
    Save a card, as [`~hf_mixer.publishing.create_card`] returns it, in a folder.

    Returns:
        `Path`: that of README.md, or that of MODEL_CARD.md beside a README.md that a person or another program wrote, or
        that was edited.

    Raises:
        `ValueError`: neither may be replaced.
    """
    path = Path(folder) / choose_card_name(Path(folder))
    card.save(path)
    return path
