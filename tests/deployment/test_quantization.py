# SPDX-License-Identifier: Apache-2.0
"""Exported programs in int8: how much of them is, and how far they are from the model."""

from collections import Counter

import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification, load_checkpoint
from hf_mixer.deployment.export import Tracing
from hf_mixer.deployment.formats import quiet_exporters
from hf_mixer.deployment.quantization import (
    MAX_DEVIATION,
    deviation,
    find_recipes,
    find_sensitive_layers,
)

from ..helpers import ROOT, needs_export


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        token_mlp_dim=24,
        channel_mlp_dim=64,
        num_labels=5,
    )
    model = MixerForImageClassification(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def export(model, format, recipe):
    with quiet_exporters():
        return Tracing(model, format, dynamic=True, batch_size=None).trace(recipe.model, quantizer=recipe.quantizer)


def first_recipe(format, model, calibration=None):
    return next(iter(find_recipes(format, model, calibration)))


def logits(model, images):
    with torch.no_grad():
        return model(pixel_values=images).logits


def is_quantized(node):
    return any(value.producer() is not None and "Dequantize" in value.producer().op_type for value in node.inputs)


def int8_products(program):
    return sum(node.op_type in ("MatMul", "Gemm", "Conv") and is_quantized(node) for node in program.graph)


@needs_export("onnx", "int8")
def test_without_images_all_33_products_of_nano_are_in_int8_in_onnx():
    nano, _ = load_checkpoint(str(ROOT / "model_cards/mixer-nano-cifar10"))
    program = export(nano, "onnx", first_recipe("onnx", nano)).program
    operators = Counter(node.op_type for node in program.graph)
    assert operators["MatMulInteger"] == 33
    assert not {"MatMul", "Gemm", "Expand"} & operators.keys()


@pytest.fixture(scope="module")
def static_onnx(model, images):
    return export(model, "onnx", first_recipe("onnx", model, images)).to("cpu")


@needs_export("onnx", "int8")
def test_with_images_every_linear_layer_is_in_int8_in_onnx(static_onnx, model, images):
    assert int8_products(static_onnx.program) == 2 * 4 + 1
    assert deviation(logits(model, images), logits(static_onnx, images)) < 2 * MAX_DEVIATION


@needs_export("onnx", "int8")
def test_with_images_the_answer_for_one_does_not_depend_on_the_others_in_its_batch(static_onnx, images):
    together = logits(static_onnx, torch.cat([images[:1], 100 * images[1:3]]))[:1].clone()
    torch.testing.assert_close(logits(static_onnx, images[:1]), together, rtol=0, atol=1e-5)


@needs_export("onnx", "int8")
def test_later_recipes_leave_the_most_sensitive_layers_in_float_in_onnx(model, images):
    *earlier, careful, last = find_recipes("onnx", model, images)
    words = ["activations scaled by 40 images", "1 of 9 linear layers in float", "2 of 9 linear layers in float"]
    assert [recipe.name.rpartition(", ")[2] for recipe in earlier] == words
    assert int8_products(export(model, "onnx", careful).program) == 5
    assert last.name == first_recipe("onnx", model).name


@needs_export("openvino", "int8")
@pytest.mark.parametrize(("has_images", "in_int8"), [(True, 10), (False, 0)])
def test_int8_in_openvino_stays_close_to_the_model(model, images, has_images, in_int8):
    """With images every product is in int8. Without them weights alone are."""
    recipe = first_recipe("openvino", model, images if has_images else None)
    exported = export(model, "openvino", recipe)
    products = [op for op in exported.program.get_ordered_ops() if op.get_type_name() in ("MatMul", "Convolution")]
    kinds = [op.input_value(0).get_node().get_type_name() for op in products]
    assert len(products) == 1 + 2 * 4 + 1  # patches are embedded by a convolution
    assert kinds.count("FakeQuantize") == in_int8
    assert deviation(logits(model, images), logits(exported.to("cpu"), images)) < 2 * MAX_DEVIATION


@pytest.mark.parametrize("factor", [1, 1000])
def test_a_layer_with_an_outlier_among_its_inputs_is_the_most_sensitive(model, images, factor):
    changed = MixerForImageClassification(model.config).eval()
    changed.load_state_dict(model.state_dict())
    norm, linear = changed.mixer.layers[0].channel_norm, changed.mixer.layers[0].channel_mixing.fc1
    with torch.no_grad():
        norm.weight[3] *= factor
        norm.bias[3] *= factor
        linear.weight[:, 3] /= factor
    # Of every layer: two products over tokens, two over channels
    is_first = find_sensitive_layers(changed, images)[0] == 2
    assert is_first == (factor > 1)
    assert sorted(find_sensitive_layers(changed, images)) == list(range(9))


def test_a_deviation_is_measured_in_standard_deviations():
    expected = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    assert deviation(expected, expected) == 0
    assert deviation(expected, expected + 0.5) == pytest.approx(0.5 / expected.std().item())


def test_int8_for_torch_is_refused_and_the_formats_that_have_it_are_named(model):
    with pytest.raises(ValueError, match="slower than float32 in the format 'torch'.*onnx.*openvino.*executorch"):
        next(iter(find_recipes("torch", model)))


def test_fewer_images_than_a_batch_are_refused(model, images):
    with pytest.raises(ValueError, match="whole batches of 8, got 3"):
        next(iter(find_recipes("onnx", model, images[:3], batch_size=8)))
