# SPDX-License-Identifier: Apache-2.0
"""Names of any script in pictures: which fonts hold their characters, and how much room they take."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path


# Comes with matplotlib
DEFAULT_FONT = "DejaVu Sans"
# Fonts that draw a box in the place of any character
PLACEHOLDERS = ("Last Resort", "Adobe Blank", "Unifont Upper")


@contextmanager
def drawable(names: Sequence[str], longest: int = 100) -> Iterator[list[str]]:
    """
    Yield `names` in a form that pictures made meanwhile can show: on one line, each of at most `longest` characters (the
    middle of longer ones is left out), and with the code of a character in the place of one that no font has.
    """
    lines = [" ".join(name.split()) for name in names]
    fonts = find_fonts(set("".join(lines)))
    known = set().union(*(characters_of(font) for font in fonts))
    lines = ["".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in line) for line in lines]
    with matplotlib.rc_context({"font.family": fonts}):
        yield [shorten(line, longest) for line in lines]


def shorten(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters: of a longer one its start and its end."""
    if len(text) <= longest:
        return text
    start = (longest - 1) // 2
    return f"{text[:start]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (longest - 1 - start) :]}"


def find_fonts(characters: Iterable[str]) -> list[str]:
    """Return the fonts that together hold as many of `characters` as possible, matplotlib's own first."""
    fonts = [DEFAULT_FONT]
    missing = {ord(character) for character in characters} - characters_of(DEFAULT_FONT)
    upright = {font.name for font in font_manager.fontManager.ttflist if (font.style, font.weight) == ("normal", 400)}
    # matplotlib's own fonts of formulas hold other signs than their code points say
    others = [name for name in upright if not name.startswith(("cm", "STIX", *PLACEHOLDERS))]
    for font in sorted(others):
        if not missing:
            break
        found = missing & characters_of(font)
        if found:
            fonts.append(font)
            missing -= found
    return fonts


@functools.cache
def characters_of(font: str) -> frozenset[int]:
    """Return the code points that matplotlib can draw in a font."""
    try:
        font_file = font_manager.get_font(font_manager.findfont(FontProperties(family=[font])))
    except (OSError, RuntimeError):  # a damaged file among the fonts of the system
        return frozenset()
    # Fonts of small pictures cannot be scaled
    return frozenset(font_file.get_charmap()) if font_file.scalable else frozenset()


def text_width(text: str, size: float) -> float:
    """Return the width of a text in inches, in a font of `size` points."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def fit_text(text: str, size: float, width: float) -> str:
    """Return a text that is at most `width` inches wide, in a font of `size` points; see `shorten`."""
    length = len(text)
    while length > 1 and text_width(shorten(text, length), size) > width:
        length -= 1
    return shorten(text, length)
