import json
import os
import sys

import pytest
import torch
from datasets import Value, load_dataset
from PIL import Image

from transformers import pipeline

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.commands.predict import main
from hf_mixer.deployment import export_model
from tests.helpers import make_dataset, make_folder, needs_export, save_classifier
from tests.new_processes import run_on_two_processes


LABELS = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), LABELS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def predict(*arguments) -> int | str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_json_holds_what_the_pipeline_says(problem_type, model_folder, photos, tmp_path, capsys):
    model = MixerForImageClassification.from_pretrained(model_folder, problem_type=problem_type)
    model.save_pretrained(tmp_path)
    MixerImageProcessorPil.from_pretrained(model_folder).save_pretrained(tmp_path)
    assert predict(tmp_path, photos, "--json", "--top_k", 2, "--batch_size", 5) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == sorted(str(path) for path in photos.rglob("*.*"))
    # Before 5.23, transformers' pipeline takes the values of a regression for logits
    settings = {"function_to_apply": "none"} if problem_type == "regression" else {}
    classify = pipeline("image-classification", str(tmp_path), device="cpu", **settings)
    for line in lines:
        expected = {entry["label"]: entry["score"] for entry in classify(line["image"], top_k=4)}
        labels = LABELS if problem_type == "regression" else list(expected)[:2]
        assert [entry["label"] for entry in line["predictions"]] == labels
        scores = [expected[label] for label in labels]
        assert [entry["score"] for entry in line["predictions"]] == pytest.approx(scores, abs=1e-5)
        if problem_type == "multi_label_classification":
            assert line["labels"] == [label for label in LABELS if expected[label] >= 0.5]
        else:
            assert "labels" not in line


def test_a_model_is_compiled_for_the_batches_of_the_prediction(model_folder, photos, monkeypatch):
    compiled = []
    name = "hf_mixer.evaluation.prediction.compile_for_inference"
    monkeypatch.setattr(name, lambda *arguments: compiled.append(arguments))
    assert predict(model_folder, photos, "--batch_size", 2) == 0
    assert not compiled
    assert predict(model_folder, photos, "--batch_size", 2, "--torch_compile") == 0
    assert [batch_size for _, batch_size in compiled] == [2]


def test_the_table_marks_labels_from_the_threshold_on_and_writes_numbers_of_a_regression(tmp_path, photos, capsys):
    image = photos / "cat" / "0.jpg"
    several = save_classifier(tmp_path / "several", LABELS, problem_type="multi_label_classification")
    assert predict(several, image, "--label_threshold", 0.001, "--top_k", 4) == 0
    assert capsys.readouterr().out.count("%*") == 4
    assert predict(several, image, "--label_threshold", 0.999) == 0
    assert capsys.readouterr().out.count("%*") == 0
    price = save_classifier(tmp_path / "price", ["price"], problem_type="regression")
    assert predict(price, image) == 0
    path, label, value = capsys.readouterr().out.split()
    assert (path, label) == (str(image), "price")
    float(value)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_classified(model_folder, photos, tmp_path, capsys):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.tiff"
    broken.write_bytes(b"not an image")
    good = photos / "cat" / "0.jpg"
    assert predict(model_folder, broken, good, missing) == 1
    output, errors = capsys.readouterr()
    assert f"cannot read the image {broken}" in errors
    assert f"cannot read the image {missing}" in errors
    assert output.startswith(str(good))
    assert output.count("%") == 3
    assert output.count("\n") == 1


def test_images_are_converted_as_asked_and_a_model_that_needs_it_says_so(tmp_path, capsys, caplog):
    folder = save_classifier(tmp_path / "model", LABELS)
    Image.new("RGBA", (16, 16), (200, 30, 90, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (16, 16), "orange").save(tmp_path / "orange.png")
    images = [tmp_path / "clear.png", tmp_path / "orange.png"]
    assert predict(folder, *images, "--json", "--flatten_transparency", "orange") == 0
    clear, orange = (json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines())
    assert [entry["label"] for entry in clear] == [entry["label"] for entry in orange]
    assert clear[0]["score"] == pytest.approx(orange[0]["score"], abs=1e-6)

    record = {"dataset": {"image_conversion": {"flatten_transparency": "orange"}}}
    (folder / "training_run.json").write_text(json.dumps(record))
    assert predict(folder, *images, "--flatten_transparency", "orange") == 0
    assert not caplog.messages
    assert predict(folder, *images) == 0
    assert len(caplog.messages) == 1
    assert "--flatten_transparency orange" in caplog.messages[0]
    assert "colour9" in predict(folder, *images, "--flatten_transparency", "colour9")


def test_a_list_names_images_relative_to_itself(model_folder, photos, capsys):
    listed = photos / "list.csv"
    listed.write_text("path,label\ndog/1.jpeg,dog\ncat/0.jpg,cat\n")
    try:
        assert predict(model_folder, listed, "--json") == 0
    finally:
        listed.unlink()
    names = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(photos / "dog/1.jpeg"), str(photos / "cat/0.jpg")]


def test_a_reader_that_stops_reading_gets_no_error(model_folder, photos, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert predict(model_folder, photos, "--json") == 141
    errors = capfd.readouterr().err
    assert "error" not in errors
    assert "Broken pipe" not in errors


def test_what_cannot_be_used_ends_in_one_line(model_folder, photos, tmp_path):
    assert predict(model_folder, tmp_path) == f"error: {tmp_path} holds no images"
    assert "--device tpu9" in predict(model_folder, photos, "--device", "tpu9")
    assert "is on this machine" in predict(model_folder, photos, "--revision", "main")
    if not torch.cuda.is_available():
        assert "--device cuda" in predict(model_folder, photos, "--device", "cuda")
    config = MixerConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_labels=0)
    MixerForImageClassification(config).save_pretrained(tmp_path / "headless")
    MixerImageProcessorPil(size=16).save_pretrained(tmp_path / "headless")
    assert predict(tmp_path / "headless", photos) == f"error: {tmp_path / 'headless'} has no classifier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--top_k", 0], "--top_k has to be at least 1, got 0"),
        (["a.png", "--batch_size", -1], "--batch_size has to be at least 1, got -1"),
        (["a.png", "--label_threshold", 1.5], "--label_threshold has to be a probability"),
        ([], "give either images or --dataset_name"),
        (["a.png", "--dataset_name", "b"], "give either images or --dataset_name"),
        (["--dataset_name", "b"], "--dataset_name needs --output_dir"),
        (["a.png", "--streaming"], "--streaming needs --dataset_name"),
        (["a.png", "--push_to_hub", "me/a"], "--push_to_hub needs --output_dir"),
        (["a.png", "--json", "--output_dir", "b"], "give one of them"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_loaded(arguments, message, capsys):
    assert predict("nowhere", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_becomes_a_data_set_with_paths(model_folder, photos, tmp_path, capsys, no_cache):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    output = tmp_path / "predictions"
    arguments = [model_folder, photos, broken, "--output_dir", output, "--rows_per_file", 4, "--top_k", 2]
    assert predict(*arguments) == 1
    assert "13 images, 1 of them cannot be read" in capsys.readouterr().out
    rows = load_dataset(str(output), split="train").to_list()
    names = sorted(path.relative_to(photos.parent).as_posix() for path in photos.rglob("*.*"))
    assert [row["path"] for row in rows] == [*names, "broken.png"]
    error = "cannot read the image broken.png: it is empty, broken or not an image"
    assert rows[-1] == {"path": "broken.png", "label": None, "score": None, "top2": None, "error": error}
    for name in ("README.md", "predictions.json"):
        assert str(tmp_path.parent) not in (output / name).read_text()
    assert predict(model_folder, photos, "--json", "--top_k", 2) == 0
    for row, line in zip(rows, capsys.readouterr().out.splitlines()):
        predictions = json.loads(line)["predictions"]
        assert row["label"] == row["top2"][0]["label"] == predictions[0]["label"]
        assert row["score"] == pytest.approx(predictions[0]["score"], abs=1e-5)

    # Again: nothing is computed, and the same is said
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    assert predict(*arguments) == 1
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == before
    assert "top_k was 2 and is 1" in predict(*arguments[:-1], 1)
    broken.write_bytes(b"another image")
    assert "data.checksum was" in predict(*arguments)
    assert {path.name for path in output.iterdir()} == {"README.md", "data", "predictions.json"}


def test_a_refused_run_leaves_no_folder(model_folder, photos, tmp_path):
    assert "nowhere" in predict("nowhere", photos, "--output_dir", tmp_path / "a")
    assert "error" in predict(model_folder, tmp_path, "--output_dir", tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in predict(model_folder, photos, "--output_dir", tmp_path / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "thesis.txt"]


def test_two_processes_predict_a_stream_and_the_result_can_go_to_the_hub(
    model_folder, tmp_path, monkeypatch, no_cache, capsys
):
    data = make_dataset([index % 2 for index in range(11)], Value("int64"), splits=("train", "test"))
    for name in ("train", "test"):
        for index in range(2):
            data[name].shard(2, index).to_parquet(tmp_path / "images" / "data" / f"{name}-{index}-of-2.parquet")
    output = tmp_path / "predictions"
    arguments = [model_folder, "--dataset_name", tmp_path / "images", "--streaming", "true", "--output_dir", output]
    run_on_two_processes(main, [str(argument) for argument in (*arguments, "--rows_per_file", 4)])
    state = json.loads((output / "predictions.json").read_text())
    assert state["complete"] is True
    assert state["num_processes"] == 2
    assert state["data"]["split"] == "test"
    rows = load_dataset(str(output), split="test").to_list()
    assert [row["data_label"] for row in rows] == data["test"]["label"][:]
    assert all(len(row["top4"]) == 4 for row in rows)

    sent = []
    monkeypatch.setattr("hf_mixer.publishing.predictions.push_predictions", lambda *call: sent.append(call) or "there")
    assert predict(*arguments, "--rows_per_file", 4, "--push_to_hub", "me/it", "--private", "--token", "secret") == 0
    assert sent == [(output, "me/it", True, "secret")]
    assert capsys.readouterr().out.endswith("and at there\n")
    assert not any(b"secret" in path.read_bytes() for path in output.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def export_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    export_model(str(model_folder), folder, "onnx")
    return folder


@needs_export("onnx")
def test_an_export_says_what_its_model_says(model_folder, export_folder, photos, capsys):
    lines = {}
    for folder in (model_folder, export_folder):
        assert predict(folder, photos, "--json", "--batch_size", 5) == 0
        lines[folder] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines[export_folder]) == len(lines[model_folder]) == 12
    for ours, theirs in zip(lines[export_folder], lines[model_folder]):
        assert ours["image"] == theirs["image"]
        assert [entry["label"] for entry in ours["predictions"]] == [entry["label"] for entry in theirs["predictions"]]
        scores = [entry["score"] for entry in theirs["predictions"]]
        assert [entry["score"] for entry in ours["predictions"]] == pytest.approx(scores, abs=1e-5)


@needs_export("onnx")
def test_the_predictions_of_one_export_are_not_continued_by_another(export_folder, photos, tmp_path, no_cache, capsys):
    output = tmp_path / "predictions"
    assert predict(export_folder, photos, "--output_dir", output) == 0
    assert "12 images, 0 of them cannot be read" in capsys.readouterr().out
    assert len(load_dataset(str(output), split="train")) == 12
    other = save_classifier(tmp_path / "other", LABELS)
    model = MixerForImageClassification.from_pretrained(other)
    model.classifier.bias.data[0] += 1
    model.save_pretrained(other)
    program = next(export_folder.glob("*.onnx"))
    before = program.read_bytes()
    export_model(str(other), tmp_path / "exported", "onnx")
    try:
        program.write_bytes((tmp_path / "exported" / program.name).read_bytes())
        assert "model.checksum was" in predict(export_folder, photos, "--output_dir", output)
    finally:
        program.write_bytes(before)


@needs_export("onnx")
def test_what_an_export_cannot_do_ends_in_one_line(export_folder, photos, tmp_path, monkeypatch):
    assert "--torch_compile is for models in PyTorch" in predict(export_folder, photos, "--torch_compile")
    assert predict(export_folder, photos / "cat" / "0.jpg", "--device", "cpu") == 0
    missing = predict(export_folder, photos, "--subfolder", "onnx")
    assert (
        missing
        == f"error: {export_folder / 'onnx'} holds no export.json: expected a folder that `hf-mixer export` wrote"
    )
    monkeypatch.setattr("hf_mixer.utils.check_device", torch.device)
    assert "--device is for models in PyTorch" in predict(export_folder, photos, "--device", "cuda")
