"""Texts of others in a card: as they are, whatever they hold."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from hf_mixer.publishing.wording import code, plain, refuse_control_characters


TEXTS = [
    "sea | lake",
    "`quoted`",
    "``` fence",
    "\\| a \\",
    "<img src=x onerror=alert(1)>",
    "<!-- gone",
    "**bold** _it_ ~~out~~ a_b",
    "[here](https://example.org) ![x](y)",
    "&lt; &#124; &amp;",
    "a `code` | <b>_x_</b>",
    "{{ title }} {% x %}",
    "heading #",
    "\N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} caf\u00e9 \u05e9\u05dc\u05d5\u05dd",
]


def render(text: str) -> str:
    """Return what the readers of a page see."""
    return html.unescape(re.sub(r"<[^>]*>", "", MarkdownIt("gfm-like", {"linkify": False}).render(text))).strip()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("write", [plain, code])
def test_a_text_looks_like_itself_in_a_sentence_a_heading_and_a_table(write, text):
    assert render(f"before {write(text)} after") == f"before {text} after"
    assert render(f"# {write(text)}") == text
    cells = render(f"| a | b |\n|---|---|\n| {write(text)} | after |").split("\n")
    assert [cell for cell in cells if cell] == ["a", "b", text, "after"]


def test_new_lines_become_spaces_and_control_characters_a_sign():
    for write in (plain, code):
        assert render(write("a\n\n# b\tc")) == "a # b c"
        assert render(write("a\0b\N{RIGHT-TO-LEFT OVERRIDE}c")) == "a\ufffdb\ufffdc"


@pytest.mark.parametrize("label", ["a\0b", "a\x1b[31mb", "a\N{RIGHT-TO-LEFT OVERRIDE}b", "\ud800"])
def test_control_characters_in_labels_are_refused(label):
    refuse_control_characters([text for text in TEXTS if text.isprintable()])
    with pytest.raises(ValueError, match=r"^label 1, '.*', holds the character U\+[0-9A-F]{4}"):
        refuse_control_characters(["fine", label])
