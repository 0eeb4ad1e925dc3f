"""Where a card is written: never over what its owner wrote."""

import pytest
from huggingface_hub import ModelCard

from hf_mixer.publishing import create_card, save_card
from hf_mixer.publishing.merging import CardConflict


def write_card(folder, repo_id=None, **options):
    return save_card(create_card(folder, repo_id), folder, **options)


def test_a_card_is_renewed_around_what_its_owner_wrote(folder):
    path = folder / "README.md"
    for number, hardware in enumerate(("an abacus", "two of them", "three of them")):
        (folder / "training_run.json").write_text(f'{{"hardware": "{hardware}"}}')
        assert write_card(folder) == path
        text = path.read_text()
        assert hardware in text
        assert text.count("Word ") == number
        # Also where git or an editor has changed the ends of the lines
        text = text.replace("## About this model\n", f"## About this model\n\nWord {number}.\n")
        path.write_bytes(text.replace("\n", "\r\n").encode())
    assert not (folder / "MODEL_CARD.md").exists()


def test_an_edit_that_contradicts_is_neither_lost_nor_hidden(folder):
    path = write_card(folder)
    text = path.read_text().replace("`plane`", "`aeroplane`")
    path.write_text(text)
    assert write_card(folder).read_text() == text
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("plane", "glider"))
    with pytest.raises(CardConflict, match="'labels'"):
        write_card(folder)
    assert path.read_text() == text
    assert "`glider`" in write_card(folder, overwrite=True).read_text()


def test_a_readme_of_which_nothing_was_generated_stays(folder):
    path = folder / "README.md"
    for content in (b"---\nlibrary_name: transformers\n---\r\n# Model card\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        for repo_id in (None, "me/mixer"):
            other = write_card(folder, repo_id)
            assert other == folder / "MODEL_CARD.md"
            assert path.read_bytes() == content
        assert "me/mixer" in other.read_text()


def test_metadata_that_you_change_before_you_save_a_card_are_yours(folder):
    card = create_card(folder)
    card.data.license = "mit"
    save_card(card, folder)
    assert ModelCard.load(write_card(folder)).data.license == "mit"
