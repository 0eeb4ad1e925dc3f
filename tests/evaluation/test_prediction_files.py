import io
import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data.images import ImageDataError
from hf_mixer.evaluation.prediction import Predictor
from hf_mixer.evaluation.prediction_files import (
    PredictionFolder,
    describe_data,
    describe_model,
    find_image_column,
    write_predictions,
)
from tests.helpers import save_classifier


NUM_IMAGES = 23
ROWS_PER_FILE = 4
BROKEN = 6


def make_data() -> Dataset:
    """Images of one color each, the number of which is in the columns `number` and `label`; one is broken, one missing."""
    images = []
    for index in range(NUM_IMAGES):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (10 * index, 255 - 10 * index, 90)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{index}.png"})
    images[BROKEN]["bytes"] = b"broken"
    images[BROKEN + 1] = None
    features = Features(
        {"number": Value("int32"), "image": ImageFeature(decode=False), "label": ClassLabel(names=["a", "b"])}
    )
    numbers = list(range(NUM_IMAGES))
    return Dataset.from_dict(
        {"number": numbers, "image": images, "label": [n % 2 for n in numbers]}, features=features
    )


def load_predictor(folder, labels, **overrides) -> Predictor:
    model = MixerForImageClassification.from_pretrained(save_classifier(folder, labels, **overrides))
    return Predictor(model, MixerImageProcessorPil.from_pretrained(folder), top_k=2)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load_predictor(tmp_path_factory.mktemp("model"), ["ant", "bee", "cat"])


def predict(data, predictor, path, num_processes=1, ranks=None):
    """Predict as so many processes do, one after the other."""
    folder = PredictionFolder(path, {}, ROWS_PER_FILE)
    folder.prepare()
    for rank in range(num_processes) if ranks is None else ranks:
        write_predictions(data, "image", predictor, folder, 3, rank, num_processes)
    return folder


def read(folder: PredictionFolder) -> list[dict]:
    files = [str(path) for path in folder.paths()]
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder.folder / "cache")).to_list()


@pytest.fixture(scope="module")
def expected(predictor, tmp_path_factory):
    return read(predict(make_data(), predictor, tmp_path_factory.mktemp("predictions")))


def test_every_image_has_a_row_with_what_the_model_says(predictor, tmp_path, capsys):
    data = make_data()
    folder = predict(data, predictor, tmp_path)
    errors = capsys.readouterr().err
    assert f"cannot read the image {BROKEN}.png" in errors
    assert f"cannot read the image in row {BROKEN + 1}:" in errors
    assert [path.name for path in folder.paths()] == [f"part-00000-{index:05}.parquet" for index in range(6)]
    rows = read(folder)
    assert [row["number"] for row in rows] == list(range(NUM_IMAGES))
    assert [row["data_label"] for row in rows] == data["label"][:]
    for row, source in zip(rows, data["image"]):
        assert row.keys() == {"number", "data_label", "label", "score", "top2", "error"}
        if row["number"] in (BROKEN, BROKEN + 1):
            assert row["error"]
            assert row["label"] is row["score"] is row["top2"] is None
        else:
            (prediction,) = predictor([source])
            assert row["error"] is None
            assert [entry["label"] for entry in row["top2"]] == [entry["label"] for entry in prediction.scores]
            assert row["score"] == pytest.approx(prediction.scores[0]["score"], abs=1e-6)
            assert row["top2"][0] == {"label": row["label"], "score": row["score"]}
    assert folder.finish() == {"num_images": NUM_IMAGES, "num_unreadable": 2}
    assert json.loads((tmp_path / "predictions.json").read_text())["complete"] is True


@pytest.mark.parametrize(
    ("problem_type", "labels", "columns"),
    [
        ("multi_label_classification", ["ant", "bee", "cat"], {"label", "score", "top2", "labels"}),
        ("regression", ["price"], {"value"}),
        ("regression", ["price", "weight"], {"values"}),
    ],
)
def test_other_kinds_of_labels_have_their_columns(problem_type, labels, columns, tmp_path):
    predictor = load_predictor(tmp_path / "model", labels, problem_type=problem_type)
    data = make_data()
    rows = read(predict(data.remove_columns("label"), predictor, tmp_path / "predictions"))
    assert rows[0].keys() == columns | {"number", "error"}
    (prediction,) = predictor([data[0]["image"]])
    values = [{**entry, "score": pytest.approx(entry["score"], rel=1e-5)} for entry in prediction.scores]
    for column, value in {
        "labels": prediction.labels,
        "top2": values,
        "values": values,
        "value": values[0]["score"],
    }.items():
        if column in columns:
            assert rows[0][column] == value


@pytest.mark.parametrize(("num_shards", "num_processes"), [(None, 3), (1, 2), (4, 2), (4, 3), (3, 8)])
def test_processes_predict_every_image_once_and_in_order(num_shards, num_processes, predictor, expected, tmp_path):
    data = make_data()
    if num_shards is not None:
        data = data.to_iterable_dataset(num_shards)
    folder = PredictionFolder(tmp_path, {}, ROWS_PER_FILE)
    folder.prepare()
    written = []
    for rank in range(num_processes):
        write_predictions(data, "image", predictor, folder, 3, rank, num_processes)
        written += [path.name for path in folder.paths() if path.name not in written]
    assert sorted(written) == [path.name for path in folder.paths()]
    rows = read(folder)
    assert [row["number"] for row in rows] == list(range(NUM_IMAGES))
    assert [row["label"] for row in rows] == [row["label"] for row in expected]


@pytest.mark.parametrize(("num_shards", "num_processes"), [(None, 1), (None, 2), (1, 2), (4, 1), (4, 2)])
def test_a_killed_run_goes_on_where_it_was(num_shards, num_processes, predictor, expected, tmp_path, monkeypatch):
    data = make_data()
    if num_shards is not None:
        data = data.to_iterable_dataset(num_shards)
    write = PredictionFolder.write
    seen = []

    def write_some(folder, part, *content):
        seen.append(part)
        if len(seen) == 3:
            (folder.data / f".{part.name}-rest").mkdir()
            raise KeyboardInterrupt
        write(folder, part, *content)

    monkeypatch.setattr(PredictionFolder, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        predict(data, predictor, tmp_path, num_processes)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("*.parquet")}
    assert len(before) == 2

    # Another number of processes
    folder = predict(data, predictor, tmp_path, 3 - num_processes)
    assert len(set(seen)) == len(folder.paths())
    assert len(seen) == len(set(seen)) + 1
    assert not list(folder.data.glob(".*"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert [(row["number"], row["label"]) for row in read(folder)] == [
        (row["number"], row["label"]) for row in expected
    ]

    predict(data, predictor, tmp_path)
    assert len(seen) == len(folder.paths()) + 1


def test_a_stream_that_breaks_keeps_finished_files(predictor, tmp_path):
    def break_off(example):
        if example["number"] == 22:
            raise ConnectionError("the line is dead.")
        return example

    data = make_data()
    with pytest.raises(
        ImageDataError, match=r"broke at row \d+ of shard 0: the line is dead. Finished files are kept"
    ):
        predict(data.to_iterable_dataset().map(break_off, features=data.features), predictor, tmp_path)
    finished = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert finished == [f"part-00000-{index:05}.parquet" for index in range(len(finished))]
    assert finished
    assert len(read(predict(data.to_iterable_dataset(), predictor, tmp_path))) == NUM_IMAGES


def test_a_folder_of_something_else_is_refused(tmp_path):
    PredictionFolder(tmp_path, {"model": {"name": "a"}, "top_k": 5}, 4).prepare(num_processes=2)
    PredictionFolder(tmp_path, {"model": {"name": "a"}, "top_k": 5}, 4).prepare(num_processes=1)
    with pytest.raises(ValueError, match=r'another run \(model.name was "a" and is "b"; top_k was 5 and is 3\)'):
        PredictionFolder(tmp_path, {"model": {"name": "b"}, "top_k": 3}, 4).prepare()
    (tmp_path / "predictions.json").rename(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="not empty, and what it holds .*notes.txt"):
        PredictionFolder(tmp_path, {}, 4).prepare()


def test_another_model_or_other_data_has_another_description(predictor, tmp_path):
    data = make_data()
    checksums = {describe_model(predictor), describe_model(load_predictor(tmp_path / "b", ["ant", "bee", "dog"]))}
    other = load_predictor(tmp_path / "c", ["ant", "bee", "cat"])
    assert describe_model(other) in checksums
    other.model.classifier.bias.data[0] += 1e-6
    checksums.add(describe_model(other))
    assert len(checksums) == 3
    described = [
        describe_data(part, "image")
        for part in (data, data.select(range(22)), data.select([*range(22), 0]), data.to_iterable_dataset(2))
    ]
    assert len({json.dumps(entry) for entry in described}) == 4
    assert describe_data(make_data(), "image") == described[0]


def test_the_column_of_images_is_found_or_asked_for():
    data = make_data()
    assert find_image_column(data.rename_column("image", "photo")) == "photo"
    two = data.add_column("other", data["image"][:], feature=ImageFeature(decode=False)).rename_column(
        "image", "photo"
    )
    assert find_image_column(two, "other") == "other"
    with pytest.raises(ValueError, match="no column 'image' with images in the data: .* one of photo, other"):
        find_image_column(two)
    with pytest.raises(ValueError, match="leave out --streaming"):
        find_image_column(data.to_iterable_dataset().map(lambda example: example))


@pytest.mark.parametrize("data", [make_data().select([]), make_data().to_iterable_dataset().take(0)])
def test_data_without_images_is_refused(data):
    with pytest.raises(ValueError, match="holds no images"):
        describe_data(data, "image")


def test_columns_of_the_data_keep_a_name_of_their_own(predictor, tmp_path):
    numbers = list(range(NUM_IMAGES))
    data = make_data().add_column("data_label", numbers).add_column("score", numbers)
    row = read(predict(data, predictor, tmp_path))[3]
    assert (row["data_label"], row["data_data_label"], row["data_score"], row["number"]) == (3, 1, 3, 3)


def test_data_may_hold_images_only(predictor, tmp_path):
    rows = read(predict(make_data().select_columns("image"), predictor, tmp_path))
    assert len(rows) == NUM_IMAGES
    assert rows[0].keys() == {"label", "score", "top2", "error"}
