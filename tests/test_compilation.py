# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification, compile_for_inference
from hf_mixer.compilation import compute_layer
from tests.helpers import needs_compiler


CONFIG = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "token_mlp_dim": 10,
    "channel_mlp_dim": 48,
    "num_labels": 5,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(**CONFIG)).eval()


@pytest.fixture(scope="module")
def compiled(model):
    torch._dynamo.reset()
    return compile_for_inference(copy.deepcopy(model), batch_size=2)


def images(batch_size: int) -> torch.Tensor:
    return torch.randn(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(batch_size))


@needs_compiler
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_compiled_model_answers_as_before_for_every_batch_size(model, compiled, batch_size):
    with torch.inference_mode():
        expected = model(images(batch_size)).logits
        torch.testing.assert_close(compiled(images(batch_size)).logits, expected)
    assert not compiled(pixel_values=images(batch_size)).logits.requires_grad


@needs_compiler
def test_the_answers_of_an_earlier_batch_stay_what_they_were(model, compiled):
    first = compiled(images(2)).logits
    compiled(images(1))
    torch.testing.assert_close(first, model(images(2)).logits.detach())


@needs_compiler
def test_weights_are_constants_of_the_code(compiled):
    before = compiled(images(2)).logits
    with torch.no_grad():
        compiled.classifier.weight.zero_()
    assert torch.equal(compiled(images(2)).logits, before)


@needs_compiler
def test_a_compiled_model_refuses_labels(compiled):
    with pytest.raises(ValueError, match="`pixel_values` alone, got labels"):
        compiled(images(2), labels=torch.tensor([0, 1]))


@needs_compiler
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 3, 8, 16), r"Input image size \(8x16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
        (None, "specify `pixel_values`"),
    ],
)
def test_images_that_do_not_fit_are_refused_as_before(compiled, wrong, message):
    with pytest.raises(ValueError, match=message):
        compiled(wrong)


@needs_compiler
def test_nothing_is_compiled_after_the_call(compiled):
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    channels_last = images(2).contiguous(memory_format=torch.channels_last)
    expected = compiled(images(2)).logits
    for pixel_values in (images(2).double(), channels_last, images(2).requires_grad_(), torch.nn.Parameter(images(2))):
        torch.testing.assert_close(compiled(pixel_values).logits, expected)
    for context in (torch.inference_mode(), torch.autocast("cpu"), torch.no_grad()):
        with context:
            torch.testing.assert_close(compiled(images(2)).logits, expected)
            compiled(images(3))
    assert counters["unique_graphs"] == before


@needs_compiler
def test_models_of_one_class_keep_their_own_weights(model, compiled):
    other = MixerForImageClassification(MixerConfig(**CONFIG)).eval()
    with torch.no_grad():
        expected = other(images(2)).logits
    compile_for_inference(other, batch_size=2)
    torch.testing.assert_close(other(images(2)).logits, expected)
    torch.testing.assert_close(compiled(images(2)).logits, model(images(2)).logits.detach())


def test_a_batch_of_no_images_is_refused(model):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        compile_for_inference(model, batch_size=0)


@torch.no_grad()
def test_what_is_compiled_computes_what_the_layer_does(model):
    layer, tokens = copy.deepcopy(model.mixer.layers[0]).double(), torch.randn(3, 16, 32).double()
    torch.testing.assert_close(compute_layer(layer, tokens), layer(tokens))
    layer.token_mixing.fc1 = torch.nn.Sequential(layer.token_mixing.fc1)
    assert compute_layer(layer, tokens) is None
