import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from PIL import Image

from hf_mixer import load_checkpoint
from hf_mixer.commands.evaluate import main, parse_arguments
from hf_mixer.low_precision import QUANTIZED
from tests.helpers import make_dataset, run_on_two_processes, save_classifier


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


def evaluate(*arguments):
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_evaluate_writes_what_it_promises(dtype, model_folder, photos, expected_matrix, tmp_path, capsys):
    evaluate(model_folder, "--dataset_name", photos, "--output_dir", tmp_path, *(["--dtype", dtype] if dtype else []))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["dataset"] == {"name": str(photos), "config": None, "split": "test", "num_images": 13}
    counts = {entry["label"]: entry["num_images"] for entry in result["per_class"]}
    assert counts == {"ant": 4, "bee": 0, "cat": 0, "dog": 3, "eel": 0, "fox": 6}
    if dtype is None:
        assert result["confusion_matrix"] == expected_matrix
        assert result["top1"] == pytest.approx(np.trace(expected_matrix) / 13)
    for picture in ("confusion_matrix.png", "calibration.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 400
    printed = capsys.readouterr().out
    assert f"13 images of {photos}, split test" in printed
    assert f"top-1 accuracy  {result['top1']:7.2%}" in printed


def test_two_processes_count_every_image_once(model_folder, photos, expected_matrix, tmp_path):
    arguments = ["--eval_dir", photos / "test", "--output_dir", tmp_path, "--per_device_eval_batch_size", 4]
    printed = run_on_two_processes("scripts/evaluate.py", model_folder, *arguments)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["confusion_matrix"] == expected_matrix
    assert evaluation["dataset"]["num_images"] == sum(entry["num_images"] for entry in evaluation["per_class"]) == 13
    assert evaluation["num_processes"] == 2
    assert printed.count("top-1 accuracy") == 1


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
        (["--eval_dir", "x"], "neither dataset_name nor split"),
        (["--image_size", "20"], "image_size"),
    ],
)
def test_what_the_data_or_model_lacks_ends_in_one_line(arguments, message, model_folder, photos):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate(model_folder, "--dataset_name", photos, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_eval_samples", "0"], "--max_eval_samples has to be at least 1, got 0"),
        (["--resize_method", "interpolate"], "--resize_method interpolate needs --image_size"),
        (["--image_size", "32", "--output_dir", "x"], "--image_size, which writes nothing"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["model", *arguments])
    assert message in capsys.readouterr().err


def test_every_low_precision_can_be_asked_for():
    assert [parse_arguments(["model", "--dtype", dtype]).dtype for dtype in QUANTIZED] == list(QUANTIZED)


def test_a_model_that_is_no_folder_needs_a_place_for_its_results(model_folder):
    with pytest.raises(SystemExit, match="say with --output_dir where to write"):
        evaluate(model_folder / "model.safetensors")


def test_a_random_part_is_the_same_every_time(model_folder, photos, tmp_path):
    results = []
    for name in ("a", "b"):
        evaluate(model_folder, "--dataset_name", photos, "--max_eval_samples", 5, "--output_dir", tmp_path / name)
        results.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert results[0]["dataset"]["num_images"] == 5
    assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]
