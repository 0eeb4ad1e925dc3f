import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from PIL import Image

from transformers import pipeline

from hf_mixer import load_checkpoint
from hf_mixer.commands.evaluate import main, parse_arguments
from hf_mixer.deployment import export_model
from hf_mixer.evaluation.metrics import confidence_interval
from tests.helpers import make_dataset, needs_export, save_classifier
from tests.new_processes import run_on_two_processes


LABELS = ["ant", "bee", "cat", "dog", "eel", "fox"]
# Another order than the model's, other cases, not all of its labels; 13 images, which two processes cannot share equally
COUNTS = {"Fox": 6, "ant": 4, "DOG": 3}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), LABELS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data set with nothing but a folder `test`."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (root / "test" / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, 3) + random.integers(-40, 40, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "test" / name / f"{index}.png")
    return root


def confusion_matrix(model_folder, photos, **resize):
    """Classify every image on its own, without anything from the package's evaluation."""
    model, processor = load_checkpoint(model_folder, **resize)
    matrix = np.zeros((6, 6), dtype=int)
    with torch.no_grad():
        for path in photos.rglob("*.png"):
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits
            matrix[LABELS.index(path.parent.name.lower()), int(logits.argmax())] += 1
    return matrix.tolist()


@pytest.fixture(scope="module")
def expected_matrix(model_folder, photos):
    matrix = confusion_matrix(model_folder, photos)
    assert np.count_nonzero(np.sum(matrix, axis=0)) >= 3
    return matrix


@pytest.fixture
def undrawn(monkeypatch):
    """For tests that do not look at the pictures, which take most of the time."""
    monkeypatch.setattr("hf_mixer.evaluation.pictures.save_pictures", lambda *arguments: [])


def evaluate(*arguments):
    main([str(argument) for argument in arguments])


def test_a_model_is_compiled_for_the_batches_of_the_evaluation(model_folder, photos, tmp_path, undrawn, monkeypatch):
    compiled = []
    monkeypatch.setattr("hf_mixer.compilation.compile_for_inference", lambda *arguments: compiled.append(arguments))
    arguments = (model_folder, "--dataset_name", photos, "--per_device_eval_batch_size", 3)
    evaluate(*arguments, "--output_dir", tmp_path / "eager")
    assert not compiled
    evaluate(*arguments, "--output_dir", tmp_path / "compiled", "--torch_compile")
    assert [batch_size for _, batch_size in compiled] == [3]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_evaluate_writes_what_it_promises(dtype, model_folder, photos, expected_matrix, tmp_path, capsys):
    evaluate(model_folder, "--dataset_name", photos, "--output_dir", tmp_path, *(["--dtype", dtype] if dtype else []))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["dataset"] == {
        "name": f"./{photos.name}",
        "config": None,
        "split": "test",
        "num_images": 13,
        "image_format": "PNG",
    }
    counts = {entry["label"]: entry["num_images"] for entry in result["per_class"]}
    assert counts == {"ant": 4, "bee": 0, "cat": 0, "dog": 3, "eel": 0, "fox": 6}
    assert result.get("dtype") == dtype
    if dtype is None:
        assert result["confusion_matrix"] == expected_matrix
        assert result["accuracy"] == pytest.approx(np.trace(expected_matrix) / 13)
    pictures = ["confusion_matrix.png", "calibration.png", "per_class.png", "predictions.png", "mistakes.png"]
    assert result["pictures"] == pictures
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["evaluation.json", *pictures])
    assert "example" not in result  # no image is right
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 150
    printed = capsys.readouterr().out
    assert f"13 images of ./{photos.name}, split test" in printed
    low, high = confidence_interval(result["accuracy"], 13)
    interval = f"(95 % interval: {low:.2%} to {high:.2%})"
    assert f"  accuracy                   {result['accuracy']:9.2%}  {interval}\n" in printed


def test_two_processes_count_every_image_once(model_folder, photos, expected_matrix, tmp_path):
    arguments = ["--eval_dir", photos / "test", "--output_dir", tmp_path, "--per_device_eval_batch_size", 4]
    printed = run_on_two_processes(evaluate, model_folder, *arguments)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["confusion_matrix"] == expected_matrix
    assert evaluation["dataset"]["num_images"] == sum(entry["num_images"] for entry in evaluation["per_class"]) == 13
    assert evaluation["num_processes"] == 2
    assert printed.count("balanced accuracy") == 1


def test_other_image_sizes_are_measured_and_nothing_is_written(model_folder, photos, capsys):
    before = sorted(model_folder.iterdir())
    for method in (None, "interpolate"):
        resize = ["--resize_method", method] if method else []
        evaluate(model_folder, "--dataset_name", photos, "--image_size", 24, 32, *resize)
        expected = ""
        for size in (None, 24, 32):
            matrix = confusion_matrix(model_folder, photos, image_size=size, resize_method=method)
            expected += f"image_size={size or 16}  accuracy={np.trace(matrix) / 13:.4f}\n"
        assert capsys.readouterr().out == expected
    assert sorted(model_folder.iterdir()) == before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(model_folder, tmp_path, num_workers):
    data = make_dataset(["ant", "bee", "cat"], Value("string"))["train"]
    table = data.data.table.to_pylist()
    table[1]["image"] = {"bytes": b"no image", "path": None}
    Dataset.from_list(table, features=data.features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(SystemExit) as stop:
        evaluate(model_folder, "--dataset_name", tmp_path, "--dataloader_num_workers", num_workers)
    assert str(stop.value).startswith("error: image 1 of the data: cannot read the image in memory: ")
    assert "Traceback" not in str(stop.value)
    assert not (model_folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "no split 'train' to evaluate on: choose one of those in the data, test"),
        (["--image_size", "24", "20"], "--image_size 20 is no multiple of the model's patch_size=8"),
        (["--label_threshold", "0.3"], "--label_threshold is for models that give an image several labels"),
        (["--flatten_transparency", "whyte"], "--flatten_transparency whyte"),
    ],
)
def test_what_the_data_or_model_lacks_ends_in_one_line(arguments, message, model_folder, photos):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate(model_folder, "--dataset_name", photos, *arguments)


def test_images_that_are_missing_are_missed_first(model_folder, tmp_path):
    (tmp_path / "evaluation.json").touch()
    with pytest.raises(SystemExit, match="^error: nowhere.csv does not exist: .*--eval_file$"):
        evaluate(model_folder, "--eval_file", "nowhere.csv", "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_eval_samples", "0"], "--max_eval_samples has to be at least 1, got 0"),
        (["--resize_method", "interpolate"], "--resize_method interpolate needs --image_size"),
        (["--image_size", "32", "--output_dir", "x"], "--image_size, which writes nothing"),
        (["--image_size", "0"], "--image_size has to be at least 1, got 0"),
        (["--eval_dir", "x", "--dataset_name", "y"], "--dataset_name and --eval_dir name different images"),
        (["--eval_file", "x", "--split", "test"], "--split belongs to --dataset_name: leave it out with --eval_file"),
        (["--label_threshold", "1.5"], "--label_threshold has to be a probability from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["model", *arguments])
    assert message in capsys.readouterr().err


def test_a_model_that_is_no_folder_needs_a_place_for_its_results(model_folder):
    with pytest.raises(SystemExit, match="say with --output_dir where to write"):
        evaluate(model_folder / "model.safetensors", "--eval_dir", "x")


def test_a_random_part_is_the_same_every_time(model_folder, photos, tmp_path, undrawn):
    results = []
    for name in ("a", "b"):
        evaluate(model_folder, "--dataset_name", photos, "--max_eval_samples", 5, "--output_dir", tmp_path / name)
        results.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert results[0]["dataset"]["num_images"] == 5
    assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]


def copy_model(model_folder, target, **dataset):
    """A folder with a model whose record says what it was trained on."""
    shutil.copytree(model_folder, target)
    (target / "training_run.json").write_text(json.dumps({"dataset": dataset}))
    return target


def test_a_part_is_called_a_part_and_does_not_replace_the_whole(model_folder, photos, tmp_path, undrawn, capsys):
    evaluate(model_folder, "--dataset_name", photos, "--output_dir", tmp_path)
    part = ["--dataset_name", photos, "--output_dir", tmp_path, "--max_eval_samples"]
    with pytest.raises(
        SystemExit, match=r"^error: .*evaluation\.json holds the result on all images of .*--overwrite$"
    ):
        evaluate(model_folder, *part, 5)
    evaluate(model_folder, *part, 13)
    assert "max_eval_samples" not in json.loads((tmp_path / "evaluation.json").read_text())["dataset"]
    capsys.readouterr()
    evaluate(model_folder, *part, 5, "--overwrite")
    assert json.loads((tmp_path / "evaluation.json").read_text())["dataset"]["max_eval_samples"] == 5
    assert f"5 images of ./{photos.name}, split test, drawn at random" in capsys.readouterr().out


def test_data_has_to_be_named(model_folder, tmp_path):
    folder = copy_model(model_folder, tmp_path / "model", name="owner/photos")
    before = sorted(folder.iterdir())
    with pytest.raises(
        SystemExit, match="^error: no images to evaluate on: .*--dataset_name, --eval_dir or --eval_file"
    ):
        evaluate(folder)
    with pytest.raises(SystemExit, match="^error: no images to evaluate on"):
        evaluate(folder, "--image_size", 24)
    assert sorted(folder.iterdir()) == before


def test_a_model_of_the_digits_is_evaluated_on_the_digits(tmp_path, undrawn, capsys):
    digits = save_classifier(tmp_path / "digits", [str(digit) for digit in range(10)], image_size=8, patch_size=4)
    folder = copy_model(digits, tmp_path / "model", name="scikit-learn digits")
    evaluate(folder)
    assert json.loads((folder / "evaluation.json").read_text())["dataset"]["num_images"] == 180
    assert "180 images of scikit-learn digits, split test" in capsys.readouterr().out


def test_images_of_the_training_are_called_so(model_folder, photos, tmp_path, undrawn, capsys, caplog):
    images = photos / "test"
    folder = copy_model(model_folder, tmp_path / "model", name=str(images), config=None, train_split="train")
    evaluate(folder, "--eval_dir", images)
    assert "The model was trained on these images" in caplog.text
    assert f"13 images of ./{photos.name}/test, split train" in capsys.readouterr().out


def test_another_folder_of_the_same_name_is_not_what_the_model_was_trained_on(
    model_folder, photos, tmp_path, undrawn, caplog
):
    for year, number in (("2023", 1), ("2024", 2)):
        shutil.copytree(photos / "test", tmp_path / year / "photos")
        for image in sorted((tmp_path / year / "photos").rglob("*.png"))[:number]:
            image.unlink()
    folder = copy_model(
        model_folder, tmp_path / "model", name="./photos", config=None, train_split="train", fingerprint="of others"
    )
    evaluate(folder, "--eval_dir", tmp_path / "2023" / "photos")
    assert "The model was trained on these images" not in caplog.text
    with pytest.raises(SystemExit, match="but of other files: .*--overwrite"):
        evaluate(folder, "--eval_dir", tmp_path / "2024" / "photos")


def test_other_data_is_refused_before_the_work(model_folder, photos, tmp_path):
    folder = copy_model(model_folder, tmp_path / "model", name="owner/photos")
    (folder / "model.safetensors").unlink()  # nothing loads it
    with pytest.raises(SystemExit, match="^error: the model in .* was trained on owner/photos, and .*--output_dir"):
        evaluate(folder, "--dataset_name", photos)


def test_labels_are_matched_by_index_only_where_told(model_folder, tmp_path, undrawn):
    data = make_dataset([0, 1, 5], Value("int64"))["train"]
    data.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    arguments = ["--dataset_name", tmp_path, "--output_dir", tmp_path / "results"]
    with pytest.raises(SystemExit, match="^error: the model has no label, .*--match_labels_by_index"):
        evaluate(model_folder, *arguments)
    evaluate(model_folder, *arguments, "--match_labels_by_index")
    per_class = json.loads((tmp_path / "results/evaluation.json").read_text())["per_class"]
    assert [entry["num_images"] for entry in per_class] == [1, 1, 0, 0, 0, 1]


def write_list(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four images."""
    root = tmp_path_factory.mktemp("pictures")
    for index in range(4):
        Image.new("RGB", (16, 16), (60 * index, 250 - 60 * index, 90)).save(root / f"{index}.png")
    return root


def outputs_of(folder, pictures):
    model, processor = load_checkpoint(folder)
    images = [Image.open(pictures / f"{index}.png") for index in range(4)]
    with torch.no_grad():
        return model(**processor(images, return_tensors="pt")).logits.double().numpy()


def test_the_example_is_what_the_model_recognizes(model_folder, pictures, tmp_path, undrawn):
    seen = [LABELS[index] for index in outputs_of(model_folder, pictures).argmax(axis=1)]
    assert "fox" not in seen
    rows = [[f"{index}.png", name] for index, name in enumerate([*seen[:2], "fox", "fox"])]
    path = write_list(pictures / "seen.csv", [["path", "label"], *rows])
    evaluate(model_folder, "--eval_file", path, "--output_dir", tmp_path)
    example = json.loads((tmp_path / "evaluation.json").read_text())["example"]
    assert example["label"] in seen[:2]
    classifier = pipeline("image-classification", str(model_folder))
    assert classifier(str(tmp_path / example["file"]))[0]["label"] == example["label"]


def test_several_labels_are_evaluated_at_a_threshold(pictures, tmp_path, capsys):
    kind = {"problem_type": "multi_label_classification", "label_thresholds": [0.2, 0.5, 0.9]}
    folder = save_classifier(tmp_path / "model", LABELS[:3], **kind)
    labels = [["ant", "cat"], ["bee"], [], ["cat"]]
    rows = [[f"{index}.png", json.dumps(names)] for index, names in enumerate(labels)]
    path = write_list(pictures / "several.csv", [["path", "label"], *rows])
    evaluate(folder, "--eval_file", path)
    per_class = json.loads((folder / "evaluation.json").read_text())["per_class"]
    assert [entry["threshold"] for entry in per_class] == [0.2, 0.5, 0.9]
    evaluate(folder, "--eval_file", path, "--label_threshold", 0.7)
    result = json.loads((folder / "evaluation.json").read_text())
    present = 1 / (1 + np.exp(-outputs_of(folder, pictures))) >= 0.7
    truth = np.array([[name in names for name in LABELS[:3]] for names in labels])
    assert present.any()
    assert result["subset_accuracy"] == (present == truth).all(axis=1).mean()
    assert result["f1_micro"] == pytest.approx(2 * (present & truth).sum() / (present.sum() + truth.sum()))
    assert [entry["threshold"] for entry in result["per_class"]] == [0.7] * 3
    assert result["pictures"] == ["per_class.png", "predictions.png", "mistakes.png"]
    assert "mean average precision" in capsys.readouterr().out
    evaluate(folder, "--eval_file", path, "--image_size", 24)
    assert f"image_size=16  mean_average_precision={result['mean_average_precision']:.4f}" in capsys.readouterr().out


def test_values_are_evaluated(pictures, tmp_path, capsys):
    folder = save_classifier(tmp_path / "model", ["price"])
    rows = [[f"{index}.png", 0.5 + index] for index in range(4)]
    evaluate(folder, "--eval_file", write_list(pictures / "prices.csv", [["path", "price"], *rows]), *LABEL_IS_PRICE)
    result = json.loads((folder / "evaluation.json").read_text())
    errors = outputs_of(folder, pictures)[:, 0] - np.arange(0.5, 4)
    assert result["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert result["r2"] == pytest.approx(1 - (errors**2).sum() / 5, rel=1e-5)
    assert result["pictures"] == ["regression.png", "predictions.png", "mistakes.png"]
    # The one of median error, of four the third
    assert result["example"] == {"file": "example.png", "label": 0.5 + np.argsort(np.abs(errors))[2]}
    assert "R\N{SUPERSCRIPT TWO}" in capsys.readouterr().out


LABEL_IS_PRICE = ["--label_column_name", "price"]


def test_images_are_converted_as_told_and_a_difference_to_the_training_is_said(
    model_folder, tmp_path, undrawn, caplog
):
    folder = copy_model(model_folder, tmp_path / "model", name="x", image_conversion={"flatten_transparency": "red"})
    for name in ("ant", "bee"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "test" / name / "0.png")
    confidences = []
    for options in ([], ["--flatten_transparency", "red"]):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            evaluate(folder, "--eval_dir", tmp_path / "test", "--output_dir", tmp_path / "results", *options)
        result = json.loads((tmp_path / "results/evaluation.json").read_text())
        confidences.append(result["mistakes"][0]["confidence"])
        warnings = [record.getMessage() for record in caplog.records if "transparent" in record.getMessage()]
        expected = "2 of 2 images are transparent: trained with --flatten_transparency red. Give the same options"
        assert [message.startswith(expected) for message in warnings] == ([] if options else [True])
        assert result["dataset"].get("image_conversion") == ({"flatten_transparency": "red"} if options else None)
    assert confidences[0] != confidences[1]


@needs_export("onnx")
def test_an_export_is_evaluated_as_its_model(model_folder, photos, expected_matrix, tmp_path, undrawn):
    folder = tmp_path / "export"
    export_model(str(model_folder), folder, "onnx", dynamic=False, batch_size=4)
    evaluate(folder, "--dataset_name", photos, "--per_device_eval_batch_size", 6)
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["confusion_matrix"] == expected_matrix
    assert (result["format"], result["dtype"]) == ("onnx", "float32")
    evaluate(folder, "--dataset_name", photos, "--dtype", "float32")
    for arguments, message in (
        (["--dtype", "int8"], "holds no program in int8: it has float32"),
        (["--torch_compile"], "--torch_compile is for models in PyTorch"),
        (["--image_size", "24"], "--image_size is for models in PyTorch"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            evaluate(folder, "--dataset_name", photos, *arguments)


@needs_export("torch")
def test_a_pickled_export_is_evaluated_only_with_trust(model_folder, photos, expected_matrix, tmp_path, undrawn):
    folder = tmp_path / "export"
    export_model(str(model_folder), folder, "torch")
    with pytest.raises(SystemExit, match="^error: .*--trust_remote_code"):
        evaluate(folder, "--dataset_name", photos)
    evaluate(folder, "--dataset_name", photos, "--trust_remote_code")
    assert json.loads((folder / "evaluation.json").read_text())["confusion_matrix"] == expected_matrix
