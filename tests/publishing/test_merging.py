"""What becomes of an owner's words and metadata when a card is renewed."""

import pytest
import yaml

from hf_mixer.publishing.merging import CardConflict, parse_card, sign_card
from hf_mixer.publishing.saving import CARD_NAME, OTHER_CARD_NAME, merge_cards


def generate(accuracy=88, license=None, tags=("vision", "mlp-mixer"), sections=("title", "results", "limits")):
    """Return a card as it is generated for a model of a certain accuracy."""
    metadata = {"tags": list(tags), "model-index": [{"name": "nano", "accuracy": accuracy}]}
    metadata |= {"license": license} if license else {}
    texts = {"title": "# nano", "results": f"## Results\n\n{accuracy} %", "limits": "## Limits\n\nMany."}
    parts = [
        f"<!-- hf-mixer: {name} -->\n{texts.get(name, name)}\n<!-- hf-mixer: end of {name} -->" for name in sections
    ]
    parts.insert(1, "## About this model\n\nNothing yet.")
    return sign_card(f"---\n{yaml.safe_dump(metadata)}---\n\n" + "\n\n".join(parts) + "\n")


def publish(generated, local=None, remote=None, **options):
    """Return README.md as it goes up."""
    cards = [{CARD_NAME: text} if text else {} for text in (local, remote)]
    merged = merge_cards(generated, *cards, **options)
    assert merged.keys() == {CARD_NAME}
    return merged[CARD_NAME]


def shown(card):
    """Return a card without its notes."""
    return card[: card.index("<!-- hf-mixer renews")]


def metadata_of(card):
    return parse_card(card).metadata


def replace(old, new):
    def edit(card):
        assert old in card
        return card.replace(old, new)

    return edit


def append(text):
    return lambda card: card.replace("<!-- hf-mixer renews", f"{text}\n\n<!-- hf-mixer renews")


def test_a_card_that_nobody_edited_is_made_anew():
    for local in (None, generate(88)):
        assert publish(generate(90), local=local, remote=publish(generate(88))) == generate(90)


@pytest.mark.parametrize(
    ("edit", "kept"),
    [
        (replace("Nothing yet.", "For counting cats. Not for people."), "For counting cats. Not for people."),
        (append("## Thanks\n\nTo the cats."), "## Thanks\n\nTo the cats."),
        (
            replace("<!-- hf-mixer: limits -->", "Between.\n\n<!-- hf-mixer: limits -->"),
            "Between.\n\n<!-- hf-mixer: limits",
        ),
        (replace("Many.", "Few."), "## Limits\n\nFew."),
        (replace("# nano\n", "# Nano, the small one\n"), "# Nano, the small one"),
        (
            replace("tags:", "# by hand\nlicense: mit\nlanguage: [en]\ntags:"),
            "# by hand\nlicense: mit\nlanguage: [en]\n",
        ),
        (replace("- vision", "- vision\n- cats"), "- cats"),
        (
            lambda card: card.replace("\n", "\r\n").replace("Nothing yet.", "Written in Windows."),
            "Written in Windows.",
        ),
        (lambda card: "\ufeff" + card.replace("Nothing yet.", "With a mark."), "With a mark."),
        (replace("Nothing yet.", "```python\nimport os\n\n\n\nos.fork()\n```"), "import os\n\n\n\nos.fork()"),
        (lambda card: append("One.")(card) + "Two.\n", "One.\n\nTwo."),
        (replace("tags:", "# docs\n\n'license': mit  # by hand\ntags:"), "# docs\n\n'license': mit  # by hand\n"),
        (replace("tags:", "# of the cat\ntags:"), "# of the cat\ntags:"),
        (lambda card: card + card[card.index("<!-- hf-mixer renews") :] + "Pasted twice.", "Pasted twice."),
        (
            lambda card: card + "<!-- hf-mixer: limits -->\n## Limits\n\nMine.\n<!-- hf-mixer: end of limits -->",
            "\nMine.\n",
        ),
    ],
)
@pytest.mark.parametrize("place", ["local", "remote"])
def test_an_edit_stays_and_the_rest_is_renewed_ever_again(edit, kept, place):
    card = publish(generate(90), **{place: edit(generate(88))})
    assert kept in card
    assert "90 %" in card
    assert "88" not in shown(card)
    assert shown(publish(generate(90), remote=card)) == shown(card)
    assert shown(publish(generate(91), remote=card)) == shown(card).replace("90", "91")


def cut(text, name):
    """Take a generated section out of a card, with its marks."""
    start, end = text.index(f"<!-- hf-mixer: {name}"), f"<!-- hf-mixer: end of {name} -->"
    return text[:start] + text[text.index(end) + len(end) :]


def test_what_was_taken_out_stays_out_and_what_is_new_comes_in_its_place():
    card = cut(generate(88), "limits").replace("- mlp-mixer\n", "")
    card = publish(
        generate(90, tags=("vision", "mlp-mixer", "onnx"), sections=("title", "speed", "results", "limits")),
        remote=card,
    )
    assert "Many." not in card
    assert metadata_of(card)["tags"] == ["vision", "onnx"]
    assert card.index("# nano") < card.index("hf-mixer: speed") < card.index("## Results")
    # What is generated no more goes, unless somebody wrote into it
    card = publish(generate(90, sections=("title", "results")), remote=card)
    assert "speed" not in card
    edited = generate(88).replace("Many.", "Few.")
    assert "Few." in publish(generate(90, sections=("title", "results")), remote=edited)


def test_sections_in_another_order_stay_in_it():
    card = generate(88)
    limits = card[card.index("<!-- hf-mixer: limits") :].partition("end of limits -->")
    moved = cut(card, "limits").replace("## About", f"{limits[0]}{limits[1]}\n\n## About")
    card = publish(generate(90), remote=moved)
    assert card.index("Many.") < card.index("## About") < card.index("90 %")


@pytest.mark.parametrize(
    "edit", [replace("88 %", "99 %"), replace("accuracy: 88", "accuracy: 99")], ids=["section", "metadata"]
)
def test_an_edit_of_what_changes_as_well_is_shown_and_refused(edit):
    card = edit(generate(88))
    with pytest.raises(CardConflict, match="--overwrite-card") as conflict:
        publish(generate(90), remote=card)
    assert "99" in conflict.value.diff
    assert "90" in conflict.value.diff
    replaced = publish(generate(90), remote=append("Mine.")(card), overwrite=True)
    assert "99" not in shown(replaced)
    assert "Mine." in replaced
    # Where nothing new was generated, there is no contradiction
    assert "99" in publish(generate(88), remote=card)
    # Once the edit is what is generated, it is none
    agreed = publish(generate(99), remote=card)
    assert "99" not in shown(publish(generate(90), remote=agreed))


def test_a_section_without_its_marks_is_its_owners():
    card = generate(88).replace("<!-- hf-mixer: results -->\n", "").replace("<!-- hf-mixer: end of results -->\n", "")
    card = publish(generate(90), remote=card.replace("88 %", "99 %"))
    assert card.count("## Results") == 1
    assert "99 %" in card


def test_without_the_notes_nothing_that_differs_is_replaced():
    card = shown(generate(88))
    with pytest.raises(CardConflict, match="'results'"):
        publish(generate(90), remote=card)
    assert "88 %" in publish(generate(88), remote=card)


def test_a_given_licence_counts_and_an_inherited_one_does_not_replace_the_owners():
    card = replace("tags:", "license: mit\ntags:")(generate(88))
    assert metadata_of(publish(generate(90, "apache-2.0"), remote=card))["license"] == "mit"
    given = publish(generate(90, "apache-2.0"), remote=card, given=["license"])
    assert metadata_of(given)["license"] == "apache-2.0"
    for first in (given, publish(generate(90, "apache-2.0"), given=["license"])):
        again = publish(generate(91), remote=publish(generate(90, "mit"), remote=first))
        assert metadata_of(again)["license"] == "apache-2.0"
    # One that was inherited goes with what it was inherited from
    assert "license" not in metadata_of(publish(generate(91), remote=publish(generate(90, "mit"))))


def test_of_two_versions_the_one_that_was_edited_last_counts():
    mine, theirs = replace("Nothing yet.", "Mine."), replace("Nothing yet.", "Theirs.")
    local = mine(generate(88))
    published = publish(generate(88), local=local)
    on_hub = published.replace("Mine.", "Mine, and theirs.")
    # Edited on the Hub alone, then in the folder alone, then in both
    assert "Mine, and theirs." in publish(generate(90), local=local, remote=on_hub)
    assert "Mine, better." in publish(generate(90), local=local.replace("Mine.", "Mine, better."), remote=published)
    for remote in (on_hub, publish(generate(90), local=local, remote=on_hub)):
        with pytest.raises(CardConflict, match="both edited") as conflict:
            publish(generate(90), local=local.replace("Mine.", "Mine, better."), remote=remote)
        assert "-Mine, and theirs." in conflict.value.diff
    # A copy of the one on the Hub, edited, contradicts nothing, whether or not that was published meanwhile
    for remote in (on_hub, publish(generate(90), local=local, remote=on_hub)):
        copy = remote.replace("and theirs.", "and theirs.\n\nOne more.")
        assert "One more." in publish(generate(90), local=copy, remote=remote)
    assert "changed" in publish(generate(90), local=published.replace("Mine.", "changed"), remote=published)
    # What was taken out on the Hub does not come back with an older copy
    with pytest.raises(CardConflict):
        publish(generate(90), local=append("One more.")(published), remote=published.replace("Mine.", ""))
    # Other indentation, and another order, are edits as well
    assert "  Mine." in publish(generate(90), local=local.replace("Mine.", "  Mine."), remote=published)
    limits = published[published.index("<!-- hf-mixer: limits") :].partition("end of limits -->")
    moved = cut(published, "limits").replace("## About", f"{limits[0]}{limits[1]}\n\n## About")
    card = publish(generate(90), local=moved, remote=published)
    assert card.index("Many.") < card.index("## About")
    # A folder that was trained anew has nothing to say
    assert "Theirs." in publish(generate(90), local=generate(90), remote=theirs(generate(88)))
    with pytest.raises(CardConflict):
        publish(generate(90), local=local, remote=theirs(generate(88)))
    assert "Mine." in publish(generate(90), local=local, remote=theirs(generate(88)), overwrite=True)


def test_a_readme_of_which_nothing_was_generated_stays_with_the_card_beside_it():
    mine = {CARD_NAME: "# Mine\r\n"}
    first = merge_cards(generate(88), mine, {})
    assert first[CARD_NAME] == "# Mine\r\n"
    assert "88 %" in first[OTHER_CARD_NAME]
    edited = {**first, CARD_NAME: "# Mine, edited on the Hub"}
    assert merge_cards(generate(90), mine, edited)[CARD_NAME] == "# Mine, edited on the Hub"
    assert "90 %" in merge_cards(generate(90), mine, edited)[OTHER_CARD_NAME]
    better = {CARD_NAME: "# Mine, and better"}
    assert merge_cards(generate(90), better, first)[CARD_NAME] == "# Mine, and better"
    with pytest.raises(CardConflict):
        merge_cards(generate(90), better, edited)
    # Whoever empties the card on the Hub keeps it empty
    assert merge_cards(generate(90), {}, {CARD_NAME: "Three words only"})[CARD_NAME] == "Three words only"
    assert shown(publish(generate(90), local=mine[CARD_NAME], overwrite=True)) == shown(generate(90))


def test_a_card_of_metadata_alone_is_filled():
    """As the Hub writes it where a licence is chosen for a new repository."""
    card = publish(generate(88), remote="---\nlicense: mit\n---\n")
    assert metadata_of(card) == {**metadata_of(generate(88)), "license": "mit"}
    assert shown(card).partition("\n---\n")[2] == shown(generate(88)).partition("\n---\n")[2]


@pytest.mark.parametrize(
    "front_matter",
    [
        "license: [mit",
        "- mit",
        "a: {b: c",
        "a: &a [*a]",
        "2024-01-01: a",
        "a: " + 2000 * "[",
        "day: 2024-13-45",
        "license: mit\nlicense: apache-2.0",
    ],
)
def test_damaged_metadata_are_named(front_matter):
    card = f"---\n{front_matter}\n---\n" + generate(88).partition("---\n\n")[2]
    with pytest.raises(ValueError, match="the metadata at the top of README.md"):
        publish(generate(90), remote=card)
    assert shown(publish(generate(90), remote=card, overwrite=True)) == shown(generate(90))
