import json

import pytest

from hf_mixer.evaluation.results import (
    check_replaceable,
    fingerprint_files,
    is_same,
    is_same_name,
    is_training_data,
    read_training_data,
    write_results,
)


TRAINED_ON = {"name": "owner/photos", "config": None, "train_split": "train", "eval_split": "validation"}
OWN = {"name": "owner/photos", "config": None, "split": "test"}
OTHER = {"name": "owner/paintings", "config": None, "split": "test"}


def save_results(folder, dataset, pictures=("per_class.png",), example=None):
    def draw(directory):
        for name in pictures:
            (directory / name).write_text(f"of {dataset['name']}")
        return list(pictures)

    def save_example(directory):
        if example is not None:
            (directory / example).write_text("image")
            return {"file": example, "label": "cat"}

    write_results(folder, {"dataset": dataset, "accuracy": 0.5, "versions": {"hf_mixer": "1"}}, draw, save_example)
    return folder


def test_results_and_pictures_replace_the_previous_ones(tmp_path):
    save_results(tmp_path, OWN, ["per_class.png", "confusion_matrix.png"])
    save_results(tmp_path, OWN, ["per_class.png", "confused_pairs.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confused_pairs.png",
        "evaluation.json",
        "per_class.png",
    ]
    assert json.loads((tmp_path / "evaluation.json").read_text())["pictures"] == [
        "per_class.png",
        "confused_pairs.png",
    ]


def test_an_example_replaces_the_previous_one(tmp_path):
    for example in ("example.jpg", "example.png"):
        save_results(tmp_path, OWN, example=example)
        check_replaceable(tmp_path, OWN, TRAINED_ON)
        assert json.loads((tmp_path / "evaluation.json").read_text())["example"] == {"file": example, "label": "cat"}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", example, "per_class.png"]
    save_results(tmp_path, OWN)
    assert not (tmp_path / "example.png").exists()


def test_a_drawing_that_fails_leaves_the_previous_results(tmp_path):
    save_results(tmp_path, OWN)

    def draw(directory):
        (directory / "per_class.png").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, {"dataset": OWN}, draw)
    assert (tmp_path / "per_class.png").read_text() == "of owner/photos"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "per_class.png"]


@pytest.mark.parametrize(
    "dataset",
    [
        OTHER,
        {**OWN, "split": "validation"},
        {**OWN, "split": "train"},
        {**OWN, "config": "small"},
        {**OTHER, "split": None},
        {**OWN, "max_eval_samples": 9},
    ],
)
def test_a_result_on_other_data_or_a_part_never_replaces_that_on_the_models_own(dataset, tmp_path):
    save_results(tmp_path, OWN)
    with pytest.raises(
        ValueError, match=r"holds the result on .*owner/photos, split test.* --output_dir.* --overwrite"
    ):
        check_replaceable(tmp_path, dataset, TRAINED_ON)
    check_replaceable(tmp_path, dataset, TRAINED_ON, overwrite=True)


@pytest.mark.parametrize("previous", [OWN, OTHER, {**OTHER, "max_eval_samples": 9}, {**OWN, "split": "train"}])
def test_a_result_on_the_models_own_data_replaces_any_of_less_weight(previous, tmp_path):
    save_results(tmp_path, previous)
    check_replaceable(tmp_path, OWN, TRAINED_ON)
    check_replaceable(tmp_path, {**OWN, "split": None}, TRAINED_ON)


def test_a_result_replaces_that_on_the_same_data(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    dataset = {"name": str(folder), "config": None, "split": "test"}
    save_results(tmp_path, {**dataset, "name": str(tmp_path / "." / "photos")})
    check_replaceable(tmp_path, dataset, {})
    check_replaceable(tmp_path, {**dataset, "max_eval_samples": None}, {})


def test_the_first_result_of_a_model_is_on_its_own_data_or_local_images(tmp_path):
    check_replaceable(tmp_path, OWN, TRAINED_ON)
    check_replaceable(tmp_path, OTHER, {})
    check_replaceable(tmp_path, {"name": "images", "config": None, "split": "test"}, {"name": "other_images"})
    with pytest.raises(
        ValueError, match=r"was trained on owner/photos, and owner/paintings, split test .*--output_dir"
    ):
        check_replaceable(tmp_path, OTHER, TRAINED_ON)


def test_a_folder_that_the_model_was_trained_on_is_training_data(tmp_path):
    photos, trained_on = tmp_path / "photos", {"name": str(tmp_path / "photos"), "train_split": "train"}
    photos.mkdir()
    assert is_same_name(f"{tmp_path}/./photos", str(photos))
    assert not is_same_name(str(tmp_path), str(photos))
    assert not is_same_name(str(photos), None)
    assert is_training_data({"name": str(photos), "config": None, "split": "train"}, trained_on)
    assert not is_training_data({"name": str(photos), "config": None, "split": "test"}, trained_on)


def test_another_folder_of_the_same_name_is_other_data(tmp_path):
    sources = {}
    for year, content in (("2022", "old"), ("2023", "new image"), ("2024", "newer image"), ("copy", "old")):
        folder = tmp_path / year / "photos" / "cat"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_text(content)
        (folder / ".hidden").write_text(year)
        fingerprint = fingerprint_files(folder.parent)
        sources[year] = {"name": "./photos", "config": None, "split": None, "fingerprint": fingerprint}
    trained_on = {**sources["2022"], "train_split": "train"}
    assert is_same(sources["copy"], trained_on)
    assert is_same({"name": "./photos", "config": None}, trained_on)
    assert not is_same(sources["2023"], trained_on)

    save_results(tmp_path / "model", sources["2023"])
    check_replaceable(tmp_path / "model", sources["2023"], trained_on)
    with pytest.raises(
        ValueError, match=r"holds the result on \./photos, .* on \./photos, but of other files: .*--overwrite"
    ):
        check_replaceable(tmp_path / "model", sources["2024"], trained_on)


def test_results_of_others_cannot_name_files_to_be_removed(tmp_path):
    folder = save_results(tmp_path / "model", OWN)
    for path in (tmp_path / "precious", folder / "config.json"):
        path.touch()
    results = json.loads((folder / "evaluation.json").read_text())
    results["pictures"] = ["../precious", "config.json", "per_class.png"]
    results["example"] = {"file": "config.json"}
    (folder / "evaluation.json").write_text(json.dumps(results))
    save_results(folder, OWN, ["mistakes.png"])
    assert (tmp_path / "precious").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "evaluation.json", "mistakes.png"]


@pytest.mark.parametrize("name", ["evaluation.json", "mistakes.png", "example.jpg"])
def test_files_of_others_are_never_replaced(name, tmp_path):
    (tmp_path / name).write_text('{"dataset": "mine", "versions": 3}')
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"holds {name}, which no evaluation has written"):
            check_replaceable(tmp_path, OWN, {}, overwrite)


def test_a_picture_that_was_put_beside_the_results_stays(tmp_path):
    save_results(tmp_path, OWN)
    (tmp_path / "regression.png").write_text("mine")
    with pytest.raises(ValueError, match=r"holds regression\.png"):
        check_replaceable(tmp_path, OWN, TRAINED_ON)


def test_the_data_of_the_training_is_read_from_its_record(tmp_path):
    assert read_training_data(tmp_path) == read_training_data(tmp_path / "model.safetensors") == {}
    (tmp_path / "training_run.json").write_text(json.dumps({"dataset": TRAINED_ON}))
    (tmp_path / "model.safetensors").touch()
    assert read_training_data(tmp_path) == read_training_data(tmp_path / "model.safetensors") == TRAINED_ON
