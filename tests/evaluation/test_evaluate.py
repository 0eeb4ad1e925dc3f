import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Value
from sklearn.metrics import top_k_accuracy_score

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data.datasets import select_image_columns
from hf_mixer.data.images import ImageTransform
from hf_mixer.evaluation.evaluate import evaluate_model, predict_dataset
from hf_mixer.evaluation.metrics import expected_calibration_error
from tests.helpers import make_dataset


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


def numbered_images(labels):
    dataset = select_image_columns(make_dataset(labels, Value("int64"))["train"])
    return dataset.with_transform(ImageTransform(MixerImageProcessorPil(size=4, do_rescale=False, do_normalize=False)))


def test_figures_of_a_data_set():
    torch.manual_seed(1)
    logits, labels = 2 * torch.randn(11, 7), torch.randint(6, (11,))
    result = evaluate_model(Stub(logits), numbered_images(labels.tolist()), Accelerator(cpu=True), batch_size=4)
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


def test_a_model_of_few_labels_has_no_top5_and_is_compared_with_another():
    data, accelerator = numbered_images([0, 1, 1, 2]), Accelerator(cpu=True)
    model, other = Stub(torch.eye(3)[[0, 1, 1, 0]]), Stub(torch.eye(3)[[0, 1, 2, 0]])
    result = evaluate_model(model, data, accelerator, reference=other)
    assert (result["top1"], result["top5"], result["agreement"]) == (3 / 4, None, 3 / 4)
    assert "agreement" not in evaluate_model(model, data, accelerator)


def test_an_output_that_is_not_finite_is_named():
    logits = torch.zeros(11, 3)
    logits[5, 1] = math.nan
    with pytest.raises(ValueError, match="the output of the model for image 5 of the data is not finite"):
        predict_dataset(Stub(logits), numbered_images([0] * 11), Accelerator(cpu=True), batch_size=4)
