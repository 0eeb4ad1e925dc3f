"""Predictions as a data set on a Hub."""

import pytest
from huggingface_hub import DatasetCard, HfApi

from hf_mixer.publishing.predictions import push_predictions, write_prediction_card


@pytest.fixture
def predictions(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "predictions.json").write_text("{}")
    (tmp_path / "data" / "part-00000-00000.parquet").write_bytes(b"PAR1\0first")
    (tmp_path / "data" / "part-00000-00001.parquet").write_bytes(b"PAR1\0second")
    (tmp_path / "_lock").write_text("mine")
    write_prediction_card(tmp_path, "me/model", "photos", "test", {"label": "the most likely label"})
    return tmp_path


def test_the_files_go_up_and_those_of_an_older_run_vanish(hub, predictions):
    url = push_predictions(predictions, "alice/predictions", private=True)
    assert url == f"{hub.endpoint}/datasets/alice/predictions"
    assert hub.repos["alice/predictions"].private
    names = {"README.md", "predictions.json", "data/part-00000-00000.parquet", "data/part-00000-00001.parquet"}
    files = hub.files("alice/predictions")
    assert {name: files[name] for name in names} == {name: (predictions / name).read_bytes() for name in names}
    assert files.keys() - names == {".gitattributes"}

    (predictions / "data" / "part-00000-00001.parquet").unlink()
    push_predictions(predictions, "alice/predictions")
    assert hub.files("alice/predictions").keys() == {*names, ".gitattributes"} - {"data/part-00000-00001.parquet"}
    assert set(hub.uploads.values()) == {1}


def test_what_is_public_or_holds_something_else_stays_as_it_is(hub, predictions):
    HfApi().create_repo("alice/photos", repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="a.txt", repo_id="alice/photos", repo_type="dataset")
    with pytest.raises(ValueError, match=r"something else than predictions \(a.txt\)"):
        push_predictions(predictions, "alice/photos")
    with pytest.raises(ValueError, match="exists and is public"):
        push_predictions(predictions, "alice/photos", private=True)
    assert hub.files("alice/photos").keys() == {".gitattributes", "a.txt"}
    # `hf-mixer predict` has no --create-pr
    with pytest.raises(PermissionError, match="Choose a name under your own, or make a token"):
        push_predictions(predictions, "bob/predictions")


def test_a_card_tells_where_the_files_are_and_is_written_once(predictions):
    card = DatasetCard.load(predictions / "README.md")
    assert card.data.configs == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "data/*.parquet"}]}
    ]
    assert "`label` | the most likely label" in card.text
    (predictions / "README.md").write_text("mine")
    write_prediction_card(predictions, "me/model", "photos", "test", {})
    assert (predictions / "README.md").read_text() == "mine"
