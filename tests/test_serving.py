"""A compiled model behind a pipeline."""

import pytest
import torch
from PIL import Image

from transformers import pipeline

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil


CONFIG = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8, channel_mlp_dim=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    MixerForImageClassification(MixerConfig(num_labels=3, initializer_range=1.0, **CONFIG)).save_pretrained(folder)
    MixerImageProcessorPil(size=16).save_pretrained(folder)
    return folder


def test_pipeline_with_batches_and_a_model_compiled_in_place(folder):
    torch._dynamo.reset()
    images = [Image.new("RGB", (20, 20), (60 * index, 200 - 40 * index, 90)) for index in range(5)]
    classifier = pipeline("image-classification", folder)
    expected = classifier(images)
    assert len({tuple(scores["score"] for scores in result) for result in expected}) == 5

    classifier.model.compile(backend="aot_eager", fullgraph=True)
    results = classifier(images, batch_size=2)
    for result, wanted in zip(results, expected):
        assert [scores["label"] for scores in result] == [scores["label"] for scores in wanted]
        assert [scores["score"] for scores in result] == pytest.approx(
            [scores["score"] for scores in wanted], abs=1e-5
        )


def test_compiled_model_is_saved_as_the_model_it_is(folder, tmp_path):
    model = MixerForImageClassification.from_pretrained(folder)
    model.compile(backend="eager")
    pixel_values = torch.randn(1, 3, 16, 16)
    expected = model(pixel_values).logits
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MixerForImageClassification.from_pretrained(tmp_path)(pixel_values).logits, expected)
