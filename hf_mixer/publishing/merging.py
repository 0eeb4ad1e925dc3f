# SPDX-License-Identifier: Apache-2.0
"""
Renewing a model card that its owner may have edited.

What is generated stands between marks, HTML comments that readers do not see. The last line of a card notes what was
generated: a checksum of each section, the metadata, and checksums of what its owner had added. So an edit is told from what
is merely old: a section that nobody touched is renewed, and everything else stays, also what was taken out.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import yaml


MARKED = "<!-- hf-mixer: {0} -->\n{1}\n<!-- hf-mixer: end of {0} -->"
SECTION = re.compile(r"<!-- hf-mixer: ([a-z-]+) -->\n(.*?)\n<!-- hf-mixer: end of \1 -->", re.DOTALL)
NOTES = (
    "<!-- hf-mixer renews what stands between its marks when the model is published again, and keeps everything else. It "
    "notes here what it wrote: {} -->"
)
NOTES_PATTERN = re.compile(r"\s*" + re.escape(NOTES).replace(r"\{\}", "(.*?)") + r"\s*")
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
# Comments and blank lines above a key of the metadata, or at their end
COMMENTS = re.compile(r"(?:^(?:#.*|[ \t]*)\n)*\Z", re.MULTILINE)
# Where two versions of it differ, neither is right for both
RESULTS = "model-index"
UNICODE_GREATER = r"\u003e"


class CardConflict(ValueError):
    """A card was edited, and what would take the place of the edit differs as well. `diff` shows both."""

    def __init__(self, message: str, diff: str):
        super().__init__(message)
        self.diff = diff


@dataclass
class ParsedCard:
    """
    A card in parts: those with a name are generated sections, the others stand between them. `notes` are empty where the
    card does not say what was generated.
    """

    front_matter: str
    metadata: dict[str, Any]
    parts: list[tuple[str, str]]
    notes: dict[str, Any]

    @property
    def sections(self) -> dict[str, str]:
        return {name: text for name, text in self.parts if name}

    def edits(self) -> list[str]:
        """
        Return checksums of all that its owner did to the card since it was generated: of lines of text, of comments,
        and of a line for every other edit.
        """
        noted = self.notes or {"metadata": {}, "sections": {}}
        lines = [line for line in self.front_matter.splitlines() if line.startswith("#")]
        lines += [line.rstrip() for name, text in self.parts if not name for line in text.splitlines() if line.strip()]
        sections, metadata = noted["sections"], note_metadata(self.metadata)
        lines += [
            f"{name}: {digest(text)}" for name, text in self.parts if name and digest(text) != sections.get(name)
        ]
        lines += [f"{name}: taken out" for name in sections if name not in self.sections]
        present = [name for name in self.sections if name in sections]
        if present != [name for name in sections if name in self.sections]:
            lines.append(f"order: {', '.join(present)}")
        changed = [
            key for key in sorted({*metadata, *noted["metadata"]}) if metadata.get(key) != noted["metadata"].get(key)
        ]
        lines += [f"{key}: {json.dumps(metadata.get(key), sort_keys=True)}" for key in changed]
        # In a list, since indentation counts
        return [digest([line])[:8] for line in lines]


def digest(content: Any) -> str:
    text = content.strip() if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def note_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as a card notes it: long values by their checksum."""
    return {key: digest(value) if key == RESULTS else value for key, value in metadata.items()}


def parse_card(text: str) -> ParsedCard:
    """
    Raises:
        `ValueError`: the metadata at the top are no valid YAML.
    """
    text = text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n")
    found = FRONT_MATTER.match(text)
    front_matter, body = (found[1] or "", text[found.end() :]) if found else ("", text)
    metadata = read_metadata(front_matter)
    notes: dict[str, Any] = {}
    written = NOTES_PATTERN.search(body)
    if written:
        body = NOTES_PATTERN.sub("\n\n", body)
        notes = read_notes(written[1])
    parts = []
    position = 0
    for match in SECTION.finditer(body):
        parts += [("", body[position : match.start()]), (match[1], match[2])]
        position = match.end()
    return ParsedCard(front_matter, metadata, [*parts, ("", body[position:])], notes)


def read_metadata(front_matter: str) -> dict[str, Any]:
    """
    Return metadata as JSON has them: dates are text.

    Raises:
        `ValueError`: they are no valid YAML.
    """
    metadata: Any = {}
    try:
        # A few lines of references that lead to references fill the memory
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(front_matter, Loader=yaml.SafeLoader)):
            raise ValueError("it has references, such as *name, in the place of values")
        metadata = json.loads(json.dumps(yaml.safe_load(front_matter) or {}, default=str))
        root = yaml.compose(front_matter, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            keys = [key.value for key, _ in root.value]
            repeated = [key for key in keys if keys.count(key) > 1]
            metadata = f"{repeated[0]} stands there twice" if repeated else metadata
    # Those that are not YAML's are for dates and keys that do not exist, and for lists in lists in lists
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        metadata = " ".join(str(error).split())
    if not isinstance(metadata, dict):
        raise ValueError(
            f"the metadata at the top of README.md are no valid YAML ({metadata}): mend them, or replace the card with "
            "`hf-mixer publish --overwrite-card`"
        )
    return metadata


def read_notes(text: str) -> dict[str, Any]:
    """Return what a card notes; nothing where somebody damaged it."""
    try:
        notes = json.loads(text)
    except ValueError:
        return {}
    return (
        notes
        if isinstance(notes, dict) and {"metadata", "sections", "blank", "edits", "local_edits"} <= notes.keys()
        else {}
    )


def is_marked(text: str) -> bool:
    """Whether there are generated parts in a card."""
    return SECTION.search(text) is not None or NOTES_PATTERN.search(text) is not None


def is_bare(text: str) -> bool:
    """Whether a card is metadata and nothing else, as the Hub writes it where a licence is chosen for a new repository."""
    card = parse_card(text)
    return bool(card.metadata) and not card.notes and not any(part.strip() for _, part in card.parts)


def without_notes(text: str) -> str:
    return NOTES_PATTERN.sub("", text).replace("\r\n", "\n").strip()


def compose_card(card: ParsedCard, edits: list[str], local_edits: list[str]) -> str:
    """
    Return the text of a card.

    Args:
        edits (`list[str]`), local_edits (`list[str]`):
            Checksums of the owner's edits in the card that goes up, and in the one beside the model, to be noted.
    """
    body = "\n\n".join(
        MARKED.format(name, text) if name else text.strip("\n") for name, text in card.parts if text.strip()
    )
    # `-->` would end the comment
    notes = json.dumps({**card.notes, "edits": edits, "local_edits": local_edits}, ensure_ascii=False)
    return f"---\n{card.front_matter}---\n\n{body}\n\n{NOTES.format(notes.replace('>', UNICODE_GREATER))}\n"


def sign_card(text: str) -> str:
    """Return a card that was just generated, with the notes that it needs to be renewed."""
    card = parse_card(text)
    sections = {name: digest(part) for name, part in card.sections.items()}
    card.notes = {"metadata": note_metadata(card.metadata), "sections": sections}
    card.notes["blank"] = card.edits()
    return compose_card(card, card.edits(), card.edits())


def renew_card(
    existing: str | None, generated: str, given: Collection[str] = (), overwrite: bool = False
) -> ParsedCard:
    """
    Return `existing` with its generated parts as they are in `generated`, and everything else as its owner left it.

    Args:
        existing (`str`, *optional*):
            The card, of which nothing or a part was generated.
        generated (`str`):
            What the card is now generated as.
        given (`Collection[str]`, *optional*):
            Keys of the metadata that the owner gives now, whatever the card says.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether generated parts replace the owner's version of them.

    Raises:
        [`CardConflict`]: a generated part was edited, and is now generated otherwise.
    """
    new = parse_card(generated)
    # What was given once is its owner's
    noted = {key: value for key, value in new.notes["metadata"].items() if key not in given}
    if existing is None:
        new.notes["metadata"] = noted
        return new
    old = parse_card(existing)
    known, fresh = old.notes.get("sections", {}), new.notes["sections"]
    conflicts: list[tuple[str, str, str]] = []
    parts: list[tuple[str, str]] = []
    for name, text in old.parts:
        is_edited = bool(name) and digest(text) != known.get(name)
        if name and (not is_edited or (overwrite and name in fresh)):
            text = new.sections.get(name, "")
        elif is_edited and fresh.get(name, known.get(name)) not in (known.get(name), digest(text)):
            conflicts.append((f"section {name!r}", text, new.sections[name]))
        parts.append((name, text))
    if is_bare(existing):
        parts = list(new.parts)
    insert_sections(parts, new, set() if overwrite else set(known) if old.notes else set(fresh))
    front_matter, disputed = renew_metadata(old, new, given, overwrite)
    if disputed:
        conflicts.append(disputed)
    if conflicts:
        names = ", ".join(name for name, _, _ in conflicts)
        raise CardConflict(
            f"the card was edited in what hf-mixer generates, and that has changed as well: {names}. Take the edit back, or "
            "take out the marks around the section, which makes it yours, or replace it with `hf-mixer publish --overwrite-card`",
            "\n".join(show_difference(*conflict) for conflict in conflicts),
        )
    kept = {name: checksum for name, checksum in known.items() if name in dict(parts) and dict(parts)[name]}
    renewed = parse_card(f"---\n{front_matter}---\n")
    renewed.parts = parts
    renewed.notes = {**new.notes, "metadata": noted, "sections": {**kept, **fresh}}
    return renewed


def insert_sections(parts: list[tuple[str, str]], new: ParsedCard, known: set[str]) -> None:
    """Put into `parts` the sections of `new` that are neither there nor `known`, each behind the one that it follows."""
    position = 0
    for name, text in new.parts:
        if not name:
            continue
        places = [index for index, (other, _) in enumerate(parts) if other == name]
        if not places and name not in known:
            parts.insert(position, (name, text))
            places = [position]
        position = places[-1] + 1 if places else position


def renew_metadata(
    old: ParsedCard, new: ParsedCard, given: Collection[str], overwrite: bool
) -> tuple[str, tuple[str, str, str] | None]:
    """
    Return the metadata of a renewed card as text, in which everything that its owner set is as it was, and the results, if
    they were edited and have changed as well.
    """
    known, fresh, own = old.notes.get("metadata", {}), new.notes["metadata"], note_metadata(old.metadata)
    changes: dict[str, Any] = {}
    disputed = None
    for key in {**fresh, **known}:
        before, mine, now = known.get(key), own.get(key), fresh.get(key)
        if mine == now or (mine != before and now == before and key not in given):
            continue
        if mine == before or key in given or (key == RESULTS and overwrite):
            changes[key] = new.metadata.get(key)
        elif isinstance(mine, list) and isinstance(now, list):
            was = before if isinstance(before, list) else []
            changes[key] = [item for item in mine if item in now or item not in was]
            changes[key] += [item for item in now if item not in was and item not in mine]
        elif key == RESULTS and mine is not None:
            disputed = (
                f"metadata {key!r}",
                dump({key: old.metadata[key]}),
                dump({key: new.metadata[key]}) if now else "",
            )
    return change_metadata(old, changes), disputed


def change_metadata(card: ParsedCard, changes: dict[str, Any]) -> str:
    """
    Return the metadata of a card as text with other values, those that are None left out. Whatever does not change stays
    as it is written, and so do comments.
    """
    if not changes:
        return card.front_matter
    text, root = card.front_matter, yaml.compose(card.front_matter, Loader=yaml.SafeLoader)
    places = [key.start_mark.index for key, _ in root.value] if root else []
    starts = [found.start() for place in [*places, len(text)] if (found := COMMENTS.search(text, 0, place))]
    entries = {
        key: (text[start:place], text[place:end])
        for key, start, place, end in zip(card.metadata, starts, places, starts[1:])
    }
    for key, value in changes.items():
        entries[key] = entries.get(key, ("", ""))[0], "" if value is None else dump({key: value})
    changed = text[: starts[0]] + "".join(above + entry for above, entry in entries.values()) + text[starts[-1] :]
    metadata = {key: value for key, value in {**card.metadata, **changes}.items() if changes.get(key, "") is not None}
    try:
        is_right = read_metadata(changed) == metadata
    except ValueError:
        is_right = False
    # What spans several keys, such as braces around them all, has to be written anew
    return changed if is_right else dump(metadata)


def dump(metadata: dict[str, Any]) -> str:
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def choose_card(local: str | None, remote: str | None, notes: dict[str, Any], overwrite: bool = False) -> str | None:
    """
    Return which of two versions of a card has what its owner wrote last.

    Args:
        local (`str`, *optional*), remote (`str`, *optional*):
            The card beside the model, and the one on the Hub.
        notes (`dict`):
            What was noted on the Hub when the model was published there.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether the one beside the model replaces the other where both were edited.

    Raises:
        [`CardConflict`]: both were edited since, or nothing tells.
    """
    if local is None or remote is None or local == remote:
        return local if remote is None else remote
    here, there = parse_card(local), parse_card(remote)
    # A card that came from the Hub was edited since it was there, any other one since it was last published
    base = notes.get("edits" if notes and here.notes == notes else "local_edits")
    if here.edits() in (there.edits(), base, here.notes.get("blank")):
        return remote
    if overwrite or there.edits() == notes.get("edits") == base:
        return local
    # So does one that has all that was written on the Hub, and nothing that was taken out there
    mine, theirs = {*here.edits()}, {*there.edits()}
    if theirs <= mine and mine.isdisjoint({*notes.get("edits", [])} - theirs):
        return local
    raise CardConflict(
        "the README.md on the Hub and the one in the folder were both edited. Bring what you want to keep into the one on the "
        "Hub and put it into the folder, or replace it by that of the folder with `hf-mixer publish --overwrite-card`",
        show_difference("README.md", remote, local),
    )


def show_difference(name: str, mine: str, other: str) -> str:
    lines = difflib.unified_diff(mine.splitlines(), other.splitlines(), f"{name}, edited", f"{name}, new", lineterm="")
    return "\n".join(lines)
