# SPDX-License-Identifier: Apache-2.0
"""Where a model card is written, and what becomes of the one that is there."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from huggingface_hub import ModelCard

from .merging import choose_card, compose_card, is_bare, is_marked, parse_card, renew_card, without_notes


CARD_NAME = "README.md"
# The name of the card where nothing of README.md was generated
OTHER_CARD_NAME = "MODEL_CARD.md"


def read_cards(folder: Path) -> dict[str, str]:
    """Return the cards in a folder, by their names."""
    paths = [folder / name for name in (CARD_NAME, OTHER_CARD_NAME)]
    return {path.name: decode_card(path.read_bytes()) for path in paths if path.is_file()}


def decode_card(content: bytes) -> str:
    # What is no UTF-8 is no card of ours, and survives
    return content.decode("utf-8", errors="surrogateescape")


def find_base_model(cards: Iterable[str]) -> str | None:
    """Return the model that this one descends from, where the owner of a card set it."""
    for card in map(parse_card, filter(is_sound, cards)):
        base_model = card.metadata.get("base_model")
        if isinstance(base_model, str) and base_model != card.notes.get("metadata", {}).get("base_model"):
            return base_model
    return None


def write_cards(cards: Mapping[str, str], folder: Path) -> None:
    for name, text in cards.items():
        (folder / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))


def merge_cards(
    generated: str,
    local: Mapping[str, str],
    remote: Mapping[str, str],
    given: Collection[str] = (),
    overwrite: bool = False,
) -> dict[str, str]:
    """
    Return the cards of a model, by their names: README.md, with its generated parts renewed. One of which nothing was
    generated stays as it is, with MODEL_CARD.md beside it.

    Args:
        generated (`str`):
            The new card.
        local (`Mapping[str, str]`), remote (`Mapping[str, str]`):
            The cards beside the model, and those where the new ones go, such as on the Hub.
        given (`Collection[str]`, *optional*):
            Keys of the metadata that the owner gives now, whatever the cards say.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether what is generated, and what is beside the model, replaces edits that contradict it.

    Raises:
        `ValueError`: edits contradict each other ([`CardConflict`]), or the metadata of a card are damaged.
    """
    if overwrite:
        local, remote = ({name: text for name, text in cards.items() if is_sound(text)} for cards in (local, remote))
    readme = choose_readme(local, remote, overwrite)
    # What the folder has brought is noted, so that the same is not brought again
    is_news = readme != remote.get(CARD_NAME)
    local_edits = parse_card(local.get(CARD_NAME, generated)).edits()
    if readme is None or is_marked(readme) or is_bare(readme) or overwrite:
        existing = readme if readme and (is_marked(readme) or is_bare(readme)) else None
        card = renew_card(existing, generated, given, overwrite)
        text = compose_card(card, card.edits(), local_edits)
        return {CARD_NAME: text if is_news else keep_same(existing, text)}
    other = remote.get(OTHER_CARD_NAME) or local.get(OTHER_CARD_NAME)
    card = renew_card(other, generated, given)
    text = compose_card(card, parse_card(readme).edits(), local_edits)
    return {CARD_NAME: readme, OTHER_CARD_NAME: text if is_news else keep_same(other, text)}


def keep_same(existing: str | None, renewed: str) -> str:
    """Return a renewed card, or the existing one where nothing would change but the notes on what its owner did."""
    if existing is None or without_notes(existing) != without_notes(renewed):
        return renewed
    old, new = parse_card(existing).notes, parse_card(renewed).notes
    return existing if all(old.get(key) == new[key] for key in ("metadata", "sections")) else renewed


def choose_readme(local: Mapping[str, str], remote: Mapping[str, str], overwrite: bool = False) -> str | None:
    """Return which of the two README.md has what its owner wrote last; see `choose_card`."""
    # The notes are in the generated card, also those on a README.md beside it
    noted = next((text for text in remote.values() if is_marked(text)), None)
    notes = parse_card(noted).notes if noted else {}
    return choose_card(local.get(CARD_NAME), remote.get(CARD_NAME), notes, overwrite)


def is_sound(text: str) -> bool:
    """Whether a card can be renewed."""
    try:
        parse_card(text)
    except ValueError:
        return False
    return True


def save_card(card: ModelCard, folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """
    Save a card, as [`~hf_mixer.publishing.create_card`] returns it, in a folder. What its owner has written into the one
    that is there stays.

    Args:
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether generated parts replace edits of them.

    Returns:
        `Path`: that of README.md, or that of MODEL_CARD.md beside a README.md of which nothing was generated.

    Raises:
        `ValueError`: a generated part was edited, and is now generated otherwise, or the card that is there is damaged.
    """
    cards = merge_cards(str(card), {}, read_cards(Path(folder)), overwrite=overwrite)
    write_cards(cards, Path(folder))
    return Path(folder, list(cards)[-1])
