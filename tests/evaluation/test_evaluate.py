import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data.images import ImageTransform
from hf_mixer.evaluation.evaluate import evaluate_model, find_confused_pairs, predict_dataset
from hf_mixer.evaluation.metrics import expected_calibration_error


INDICES = Value("int64")


class Stub(torch.nn.Module):
    """Answers with the logits of the image's number, which is its red value."""

    dtype = torch.float32

    def __init__(self, logits, problem_type=None):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        id2label = {index: f"label {index}" for index in range(logits.shape[1])}
        self.config = SimpleNamespace(num_labels=logits.shape[1], id2label=id2label, problem_type=problem_type)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.logits[pixel_values[:, 0, 0, 0].round().long()])


def numbered_images(labels, feature=INDICES):
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(len(labels))]
    features = Features({"image": ImageFeature(), "label": feature})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    dataset = dataset.cast_column("image", ImageFeature(decode=False))
    return dataset.with_transform(ImageTransform(MixerImageProcessorPil(size=4, do_rescale=False, do_normalize=False)))


def test_figures_of_a_data_set():
    torch.manual_seed(1)
    logits, labels = 2 * torch.randn(11, 7), torch.randint(6, (11,))
    result, _ = evaluate_model(Stub(logits), numbered_images(labels.tolist()), Accelerator(cpu=True), batch_size=4)
    predictions = logits.argmax(dim=1)
    assert result["problem_type"] == "single_label_classification"
    assert result["accuracy"] == pytest.approx(float((predictions == labels).double().mean()))
    assert result["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    matrix = np.zeros((7, 7), dtype=int)
    np.add.at(matrix, (labels.numpy(), predictions.numpy()), 1)
    assert result["confusion_matrix"] == matrix.tolist()
    assert [entry["num_images"] for entry in result["per_class"]] == matrix.sum(axis=1).tolist()
    assert (result["per_class"][6]["num_images"], result["per_class"][6]["accuracy"]) == (0, None)
    assert result["ece"] == pytest.approx(expected_calibration_error(result["calibration"]))
    assert json.loads(json.dumps(result)) == result


def test_the_most_confident_mistakes_come_first():
    logits = torch.tensor([[3.0, 0, 0], [5.0, 0, 0], [0, 9.0, 0], [4.0, 0, 0]])
    result, _ = evaluate_model(Stub(logits), numbered_images([1, 2, 1, 1]), Accelerator(cpu=True))
    assert [mistake["image"] for mistake in result["mistakes"]] == [1, 3, 0]
    confidence = float(logits[1].softmax(0)[0])
    first = {"image": 1, "true": "label 2", "predicted": "label 0", "confidence": pytest.approx(confidence)}
    assert result["mistakes"][0] == first
    assert result["confused_pairs"] == [
        {"true": "label 1", "predicted": "label 0", "count": 2, "share": 2 / 3},
        {"true": "label 2", "predicted": "label 0", "count": 1, "share": 1.0},
    ]


def test_a_model_without_mistakes_confuses_nothing():
    assert find_confused_pairs(np.array([0, 1]), np.array([0, 1]), ["a", "b"]) == []


def test_a_model_of_few_labels_has_no_top5_and_is_compared_with_another():
    data, accelerator = numbered_images([0, 1, 1, 2]), Accelerator(cpu=True)
    model, other = Stub(torch.eye(3)[[0, 1, 1, 0]]), Stub(torch.eye(3)[[0, 1, 2, 0]])
    result, _ = evaluate_model(model, data, accelerator, reference=other)
    assert (result["accuracy"], result["agreement"]) == (3 / 4, 3 / 4)
    assert "top5_accuracy" not in result
    assert "agreement" not in evaluate_model(model, data, accelerator)[0]


def test_several_labels_of_an_image_are_judged_one_by_one():
    truth = [[True, False], [True, True], [False, False]]
    logits = torch.tensor([[1.0, -1.0], [-3.0, 2.0], [0.5, -1.0]])
    data = numbered_images(truth, List(Value("bool")))
    stub = Stub(logits, "multi_label_classification")
    result, scores = evaluate_model(stub, data, Accelerator(cpu=True), batch_size=2, thresholds=[0.5, 0.9])
    target = torch.tensor(truth).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert result["loss"] == pytest.approx(float(loss))
    first, second = result["per_class"]
    assert (first["label"], first["num_images"], first["precision"], first["recall"]) == ("label 0", 2, 1 / 2, 1 / 2)
    assert first["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    # Its probability of 88 % is below the threshold
    assert (second["recall"], second["threshold"], second["average_precision"]) == (0, 0.9, 1)
    assert result["mistakes"][0]["image"] == 1
    assert (result["mistakes"][0]["true"], result["mistakes"][0]["predicted"]) == ("label 0", "no label 0")
    assert result["mistakes"][0]["confidence"] == pytest.approx(1 / (1 + math.exp(-3)))
    np.testing.assert_array_equal(scores["logits"], logits.numpy())
    assert json.loads(json.dumps(result)) == result


def test_values_are_judged_by_their_errors():
    logits = torch.tensor([[1.0], [2.0], [6.0]])
    data = numbered_images([[1.0], [3.0], [9.0]], List(Value("float32")))
    result, _ = evaluate_model(Stub(logits), data, Accelerator(cpu=True))
    assert result["problem_type"] == "regression"
    assert result["loss"] == result["mse"] == pytest.approx(10 / 3)
    output = {"label": "label 0", "mae": pytest.approx(4 / 3), "r2": pytest.approx(result["r2"])}
    assert result["per_class"] == [output | {"rmse": pytest.approx(math.sqrt(10 / 3))}]
    assert [mistake["image"] for mistake in result["mistakes"]] == [2, 1, 0]
    assert result["mistakes"][0] == {"image": 2, "output": "label 0", "true": 9.0, "predicted": 6.0}
    assert json.loads(json.dumps(result)) == result


def test_an_output_that_is_not_finite_is_named():
    logits = torch.zeros(11, 3)
    logits[5, 1] = math.nan
    with pytest.raises(ValueError, match="the output of the model for image 5 of the data is not finite"):
        predict_dataset(Stub(logits), numbered_images([0] * 11), Accelerator(cpu=True), batch_size=4)
