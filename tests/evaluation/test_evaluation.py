"""Evaluation: the figures, the matching of labels, and the script on one and on two processes."""

import json
import math
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Value
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data.datasets import load_evaluation_dataset, prepare_evaluation_dataset
from hf_mixer.data.images import ImageTransform
from hf_mixer.data.labels import match_labels
from hf_mixer.evaluation.evaluate import evaluate_model, predict_dataset
from hf_mixer.evaluation.metrics import (
    calibration_bins,
    expected_calibration_error,
    per_class_accuracy,
    score_logits,
    top_k_accuracy,
)
from tests.helpers import ROOT, make_dataset


SCRIPT = ROOT / "scripts" / "evaluate.py"
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox"]
# Another order than the model's, other cases, not all of its labels; 13 images, which two processes cannot share equally
COUNTS = {"Fox": 6, "ant": 4, "DOG": 3}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    id2label = dict(enumerate(LABELS))
    config = MixerConfig(
        image_size=16,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=1,
        token_mlp_dim=8,
        channel_mlp_dim=32,
        id2label=id2label,
        label2id={label: index for index, label in id2label.items()},
    )
    model = MixerForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    MixerImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="module")
def expected_matrix(model_folder, photos):
    """Every image on its own, without anything from the package's evaluation."""
    model = MixerForImageClassification.from_pretrained(model_folder)
    processor = MixerImageProcessorPil.from_pretrained(model_folder)
    matrix = np.zeros((6, 6), dtype=int)
    with torch.no_grad():
        for path in photos.rglob("*.png"):
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits
            matrix[LABELS.index(path.parent.name.lower()), int(logits.argmax())] += 1
    assert (matrix.sum(axis=0) > 0).sum() >= 3
    return matrix.tolist()


def run_here(*arguments):
    """Run the script in this process, which saves the imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_scores_of_a_batch_by_hand():
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    scores = score_logits(logits, torch.tensor([0, 2, 0]))
    assert scores["predictions"].tolist() == [1, 0, 0]
    assert scores["ranks"].tolist() == [1, 2, 0]
    assert scores["finite"].tolist() == [False, True, True]
    torch.testing.assert_close(scores["confidences"][:2], torch.tensor([3 / 4, 1 / 3]))
    torch.testing.assert_close(scores["losses"][:2], torch.tensor([math.log(4), math.log(3)]))
    assert [top_k_accuracy(scores["ranks"].numpy(), k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]


def test_scores_of_many_batches_agree_with_scikit_learn():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 10, dtype=torch.bfloat16), torch.randint(10, (200,))
    scores = score_logits(logits, labels)
    ranks = scores["ranks"].numpy()
    assert top_k_accuracy(ranks, 1) == float((scores["predictions"] == labels).double().mean())
    exact = torch.randn(200, 10)
    ranks = score_logits(exact, labels)["ranks"].numpy()
    for k in (1, 3, 5):
        assert top_k_accuracy(ranks, k) == pytest.approx(top_k_accuracy_score(labels, exact.numpy(), k=k))


def test_accuracy_per_class():
    labels, predictions = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 0, 2, 0])
    assert per_class_accuracy(labels, predictions, 4) == [2 / 3, None, 1 / 2, None]


def test_calibration_by_hand():
    # Bins of width 0.2, closed above: 0.2 | 0.55 and 0.6 | 0.9 and 0.95
    bins = calibration_bins(
        np.array([0.9, 0.2, 0.55, 0.95, 0.6]), np.array([True, False, True, False, True]), num_bins=5
    )
    assert [entry and entry["count"] for entry in bins] == [1, None, 2, None, 2]
    assert bins[2] == {"confidence": pytest.approx(0.575), "accuracy": 1.0, "count": 2}
    assert expected_calibration_error(bins) == pytest.approx(1 / 5 * 0.2 + 2 / 5 * 0.425 + 2 / 5 * 0.425)


def test_calibration_is_zero_where_confidence_equals_accuracy():
    bins = calibration_bins(np.array([0.75] * 4 + [1.0] * 3 + [0.0]), np.array([1, 1, 1, 0, 1, 1, 1, 0], dtype=bool))
    assert len(bins) == 15
    assert sum(entry["count"] for entry in bins if entry) == 8
    assert expected_calibration_error(bins) == 0


@pytest.mark.parametrize(
    ("labels", "model_labels", "names", "expected"),
    [
        ({0, 1}, ["dog", "cat"], ["Cat", "DOG", "unused"], {0: 1, 1: 0}),
        ({"cat", "dog"}, ["dog", "cat", "eel"], None, {"cat": 1, "dog": 0}),
        ({0, 2}, ["dog", "cat", "eel"], None, {0: 0, 2: 2}),
        # Trained on the integers 2 and 10, which became names
        ({2, 10}, ["2", "10"], None, {2: 0, 10: 1}),
        ({"2", "10"}, ["2", "10"], None, {"2": 0, "10": 1}),
        ({0, 1}, ["LABEL_0", "LABEL_1"], ["cat", "dog"], {0: 0, 1: 1}),
        ({0, 1}, ["cat", "dog"], ["0", "1"], {0: 0, 1: 1}),
        # ImageNet has two labels of the same name
        ({0, 1, 2}, ["crane", "tench", "crane"], ["crane", "tench", "crane"], {0: 0, 1: 1, 2: 2}),
    ],
)
def test_labels_are_matched(labels, model_labels, names, expected):
    assert match_labels(labels, model_labels, names) == expected


@pytest.mark.parametrize(
    ("labels", "model_labels", "names", "message"),
    [
        ({0, 1}, ["dog", "cat"], ["cat", "mouse"], r"'mouse' in the data; it has 'dog', 'cat'\. Rename the classes"),
        ({"a", "b"}, ["dog", "cat"], None, r"'a', 'b' in the data; it has"),
        ({0, 2}, ["dog", "cat"], None, r"'2' in the data; it has .* integers from 0 to 1"),
        ({0, 1}, ["crane", "tench", "crane"], ["tench", "crane"], r"more than one, for 'crane'"),
    ],
)
def test_labels_that_the_model_lacks_are_named(labels, model_labels, names, message):
    with pytest.raises(ValueError, match=message):
        match_labels(labels, model_labels, names)


def test_the_data_takes_the_indices_of_the_model():
    dataset = make_dataset([1, 0, 1], ClassLabel(names=["cat", "dog"]), columns=("picture", "class"))["train"]
    prepared = prepare_evaluation_dataset(dataset, ["dog", "cat", "eel"], label_column_name="class")
    assert prepared["label"][:] == [0, 1, 0]
    assert set(prepared.column_names) == {"image", "label"}
    shades = [
        row["pixel_values"][0].max() for row in prepared.with_transform(ImageTransform(MixerImageProcessorPil()))
    ]
    assert shades == sorted(shades)
    assert len(set(shades)) == 3


@pytest.mark.parametrize(
    ("labels", "feature"), [([0, -1, 1], ClassLabel(names=["cat", "dog"])), (["cat", None, "dog"], Value("string"))]
)
def test_images_without_labels_are_refused(labels, feature):
    with pytest.raises(ValueError, match=r"1 of 3 images have no label in column 'label'.*another split"):
        prepare_evaluation_dataset(make_dataset(labels, feature)["train"], ["cat", "dog"])


def test_other_columns_are_refused():
    with pytest.raises(ValueError, match="'label' holds no classes, integers or strings"):
        prepare_evaluation_dataset(make_dataset([0.5, 1.0], Value("float32"))["train"], ["cat", "dog"])


def test_the_split(photos, tmp_path):
    data = make_dataset([0, 1], ClassLabel(names=["cat", "dog"]))["train"]
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert load_evaluation_dataset(str(tmp_path))[1] == "validation"
    assert load_evaluation_dataset(str(tmp_path), split="train")[1] == "train"
    with pytest.raises(ValueError, match="no split 'test' in the data, only train, validation"):
        load_evaluation_dataset(str(tmp_path), split="test")
    data.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert load_evaluation_dataset(str(tmp_path))[1] == "test"

    dataset, split = load_evaluation_dataset(str(photos))
    assert (len(dataset), split) == (13, "test")
    assert len(load_evaluation_dataset(eval_dir=str(photos / "test"))[0]) == 13
    with pytest.raises(ValueError, match="give it as eval_dir"):
        load_evaluation_dataset(str(photos / "test"))
    with pytest.raises(ValueError, match="neither dataset_name nor split"):
        load_evaluation_dataset(str(photos), eval_dir=str(photos / "test"))


class Stub(torch.nn.Module):
    """Answers with the logits of the image's number, which is its red value."""

    dtype = torch.float32

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        id2label = {index: f"label {index}" for index in range(logits.shape[1])}
        self.config = SimpleNamespace(num_labels=logits.shape[1], id2label=id2label)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.logits[pixel_values[:, 0, 0, 0].round().long()])


def numbered_images(labels, num_labels):
    dataset = make_dataset(labels, Value("int64"))["train"]
    processor = MixerImageProcessorPil(size=4, do_rescale=False, do_normalize=False)
    names = [f"label {index}" for index in range(num_labels)]
    return prepare_evaluation_dataset(dataset, names).with_transform(ImageTransform(processor))


def test_figures_of_a_data_set():
    torch.manual_seed(1)
    logits, labels = 2 * torch.randn(11, 7), torch.randint(6, (11,))
    result = evaluate_model(Stub(logits), numbered_images(labels.tolist(), 7), Accelerator(cpu=True), batch_size=4)
    predictions = logits.argmax(dim=1)
    assert result["top1"] == pytest.approx(float((predictions == labels).double().mean()))
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    matrix = np.zeros((7, 7), dtype=int)
    np.add.at(matrix, (labels.numpy(), predictions.numpy()), 1)
    assert result["confusion_matrix"] == matrix.tolist()
    assert [entry["num_images"] for entry in result["per_class"]] == matrix.sum(axis=1).tolist()
    assert result["per_class"][6] == {"label": "label 6", "num_images": 0, "accuracy": None}
    assert result["ece"] == pytest.approx(expected_calibration_error(result["calibration"]))
    assert json.loads(json.dumps(result)) == result


def test_few_labels_have_no_top5():
    result = evaluate_model(Stub(torch.eye(3)), numbered_images([0, 1, 1], 3), Accelerator(cpu=True))
    assert (result["top1"], result["top5"]) == (2 / 3, None)


def test_a_model_is_compared_with_another():
    data = numbered_images([0, 1, 1, 2], 3)
    model, other = Stub(torch.eye(3)[[0, 1, 1, 0]]), Stub(torch.eye(3)[[0, 1, 2, 0]])
    result = evaluate_model(model, data, Accelerator(cpu=True), reference=other)
    assert (result["top1"], result["agreement"]) == (3 / 4, 3 / 4)
    assert "agreement" not in evaluate_model(model, data, Accelerator(cpu=True))


def test_an_output_that_is_not_finite_is_named():
    logits = torch.zeros(11, 3)
    logits[5, 1] = math.nan
    with pytest.raises(ValueError, match="the output of the model for image 5 of the data is not finite"):
        predict_dataset(Stub(logits), numbered_images([0] * 11, 3), Accelerator(cpu=True), batch_size=4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(model_folder, tmp_path, num_workers):
    data = make_dataset(["ant", "bee", "cat"], Value("string"))["train"]
    table = data.data.table.to_pylist()
    table[1]["image"] = {"bytes": b"no image", "path": None}
    Dataset.from_list(table, features=data.features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(SystemExit) as stop:
        run_here(model_folder, "--dataset_name", tmp_path, "--dataloader_num_workers", num_workers)
    assert str(stop.value).startswith("error: image 1 of the data: cannot read the image in memory: ")
    assert "Traceback" not in str(stop.value)
    assert not (model_folder / "evaluation.json").exists()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_script_writes_what_it_promises(dtype, model_folder, photos, expected_matrix, tmp_path, capsys):
    run_here(model_folder, "--dataset_name", photos, "--output_dir", tmp_path, *(["--dtype", dtype] if dtype else []))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["dataset"] == {"name": str(photos), "config": None, "split": "test", "num_images": 13}
    assert {entry["label"]: entry["num_images"] for entry in result["per_class"] if entry["num_images"]} == {
        "ant": 4,
        "dog": 3,
        "fox": 6,
    }
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
    config = tmp_path / "accelerate.yaml"
    config.write_text("distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), str(SCRIPT)]
    arguments = ["--eval_dir", photos / "test", "--output_dir", tmp_path, "--per_device_eval_batch_size", "4"]
    result = subprocess.run(
        [sys.executable, *launcher, str(model_folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["confusion_matrix"] == expected_matrix
    assert evaluation["dataset"]["num_images"] == sum(entry["num_images"] for entry in evaluation["per_class"]) == 13
    # 13 images in batches of 4: each of two processes has two steps
    assert evaluation["num_processes"] == 2
    assert result.stdout.count("top-1 accuracy") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "no split 'train' in the data, only test"),
        (["--eval_dir", "x"], "neither dataset_name nor split"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, model_folder, photos):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run_here(model_folder, "--dataset_name", photos, *arguments)


def test_a_model_that_is_no_folder_needs_a_place_for_its_results(model_folder):
    with pytest.raises(SystemExit, match="say with --output_dir where to write"):
        run_here(model_folder / "model.safetensors")


def test_a_random_part_is_the_same_every_time(model_folder, photos, tmp_path):
    for name in ("a", "b"):
        run_here(model_folder, "--dataset_name", photos, "--max_eval_samples", 5, "--output_dir", tmp_path / name)
    first, second = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("a", "b"))
    assert first["dataset"]["num_images"] == 5
    assert first["confusion_matrix"] == second["confusion_matrix"]
