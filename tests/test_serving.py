"""A compiled model behind a pipeline."""

import pytest
import torch
from PIL import Image

from transformers import pipeline

from hf_mixer import MixerForImageClassification
from tests.helpers import save_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), ["cat", "dog", "bird"])


def test_pipeline_with_batches_and_a_model_compiled_in_place(folder):
    torch._dynamo.reset()
    images = [Image.new("RGB", (20, 20), (60 * index, 200 - 40 * index, 90)) for index in range(5)]
    classifier = pipeline("image-classification", folder)
    expected = classifier(images)
    assert len({tuple(scores["score"] for scores in result) for result in expected}) == 5

    classifier.model.compile(backend="aot_eager", fullgraph=True)
    results = classifier(images, batch_size=2)
    for result, wanted in zip(results, expected):
        scores = {score["label"]: score["score"] for score in result}
        assert scores == pytest.approx({score["label"]: score["score"] for score in wanted}, abs=1e-5)


def test_compiled_model_is_saved_as_the_model_it_is(folder, tmp_path):
    model = MixerForImageClassification.from_pretrained(folder)
    model.compile(backend="eager")
    pixel_values = torch.randn(1, 3, 16, 16)
    expected = model(pixel_values).logits
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MixerForImageClassification.from_pretrained(tmp_path)(pixel_values).logits, expected)
