"""Where a card is written: never over one that a person wrote or edited."""

import pytest
from huggingface_hub import ModelCard

from hf_mixer.publishing import create_card, save_card
from hf_mixer.publishing.saving import is_generated


def write_card(folder, repo_id=None):
    return save_card(create_card(folder, repo_id), folder)


def test_a_card_is_made_anew_as_long_as_nobody_edits_it(folder):
    path = folder / "README.md"
    for hardware in ("an abacus", "two of them"):
        (folder / "training_run.json").write_text(f'{{"hardware": "{hardware}"}}')
        assert write_card(folder) == path
        assert hardware in path.read_text()
    assert not (folder / "MODEL_CARD.md").exists()
    # Also where git or an editor has changed nothing but the ends of the lines
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert write_card(folder, "me/mixer") == path
    assert "me/mixer" in path.read_text()


def edit_text(text):
    return text.replace("## Labels", "## My labels")


def edit_metadata(text):
    return text.replace("license: apache-2.0", "license: mit")


def write_like_another_program(text):
    return "---\nlibrary_name: transformers\n---\n# Model card\n"


@pytest.mark.parametrize("write", [edit_text, edit_metadata, write_like_another_program])
def test_a_readme_that_a_person_or_another_program_wrote_stays(write, folder):
    path = write_card(folder)
    text = write(path.read_text())
    path.write_text(text)
    assert not is_generated(text)
    for repo_id in (None, "me/mixer"):
        other = write_card(folder, repo_id)
        assert other == folder / "MODEL_CARD.md"
        assert path.read_text() == text
    assert "me/mixer" in other.read_text()

    other.write_text(text)
    with pytest.raises(ValueError, match=r"a README.md and a MODEL_CARD.md that .* move one of them away"):
        write_card(folder)
    assert other.read_text() == text


def test_what_is_no_text_stays(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    assert write_card(folder).name == "MODEL_CARD.md"


def test_a_card_that_you_change_before_you_save_it_is_yours(folder):
    card = create_card(folder)
    assert is_generated(str(card))
    assert is_generated(str(ModelCard(str(card))))
    card.data.license = "mit"
    assert not is_generated(str(card))
