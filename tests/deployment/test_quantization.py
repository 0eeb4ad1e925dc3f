# SPDX-License-Identifier: Apache-2.0
"""Tests of int8 and float16 for exported programs."""

from collections import Counter

import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.deployment.export import Tracing
from hf_mixer.deployment.formats import quiet_exporters
from hf_mixer.deployment.quantization import (
    MAX_DEVIATION,
    deviation,
    find_recipes,
    find_sensitive_products,
    to_float16,
)

from ..helpers import needs_export


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


def export(model, format, recipe=None):
    with quiet_exporters():
        return Tracing(model, format, dynamic=True, batch_size=None).trace(
            model, quantizer=recipe and recipe.quantizer
        )


def first_recipe(format, model, calibration=None):
    return next(iter(find_recipes(format, model, calibration)))


def logits(model, images):
    with torch.no_grad():
        return model(pixel_values=images).logits


def count_operators(program):
    return Counter(node.op_type for node in program.graph)


def is_quantized(node):
    return any(value.producer() is not None and "Dequantize" in value.producer().op_type for value in node.inputs)


def int8_products(program):
    return sum(node.op_type in ("MatMul", "Gemm") and is_quantized(node) for node in program.graph)


@needs_export("onnx", "int8")
def test_without_images_every_linear_layer_is_in_int8_in_onnx(model, images):
    exported = export(model, "onnx", first_recipe("onnx", model))
    counts = count_operators(exported.program)
    assert counts["MatMulInteger"] == 2 * 4 + 1
    assert counts["MatMul"] == counts["Gemm"] == 0
    assert deviation(logits(model, images), logits(exported.to("cpu"), images)) < MAX_DEVIATION


@needs_export("onnx", "int8")
def test_with_images_every_linear_layer_is_in_int8_in_onnx(model, images):
    exported = export(model, "onnx", first_recipe("onnx", model, images))
    assert int8_products(exported.program) == 2 * 4 + 1
    assert deviation(logits(model, images), logits(exported.to("cpu"), images)) < 2 * MAX_DEVIATION


@needs_export("onnx", "int8")
def test_with_images_the_answer_for_one_does_not_depend_on_the_others_in_its_batch(model, images):
    exported = export(model, "onnx", first_recipe("onnx", model, images)).to("cpu")
    together = logits(exported, torch.cat([images[:1], 100 * images[1:3]]))[:1].clone()
    torch.testing.assert_close(logits(exported, images[:1]), together, rtol=0, atol=1e-5)


@needs_export("onnx", "int8")
def test_later_recipes_leave_the_most_sensitive_layers_in_float_in_onnx(model, images):
    _, *careful, last = find_recipes("onnx", model, images)
    assert last.name == first_recipe("onnx", model).name
    assert [int8_products(export(model, "onnx", recipe).program) for recipe in careful] == [8, 7, 5]
    assert "4 of 9 linear layers in float" in careful[-1].name


@needs_export("openvino", "int8")
@pytest.mark.parametrize("has_images", [False, True])
def test_openvino_in_int8_stays_close_to_the_model(model, images, has_images):
    exported = export(model, "openvino", first_recipe("openvino", model, images if has_images else None))
    assert deviation(logits(model, images), logits(exported.to("cpu"), images)) < 2 * MAX_DEVIATION


@needs_export("openvino", "int8")
def test_with_images_every_product_is_in_int8_in_openvino(model, images):
    program = export(model, "openvino", first_recipe("openvino", model, images)).program
    products = [op for op in program.get_ordered_ops() if op.get_type_name() == "MatMul"]
    assert len(products) == 2 * 4 + 1
    assert all(op.input_value(0).get_node().get_type_name() == "FakeQuantize" for op in products)


@needs_export("openvino", "int8")
def test_the_last_recipe_with_images_leaves_half_of_the_products_in_float_in_openvino(model, images):
    *_, recipe, _ = find_recipes("openvino", model, images)
    program = export(model, "openvino", recipe).program
    products = [op for op in program.get_ordered_ops() if op.get_type_name() == "MatMul"]
    in_int8 = [op for op in products if op.input_value(0).get_node().get_type_name() == "FakeQuantize"]
    assert len(in_int8) == 5


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
    is_first = find_sensitive_products(changed, images)[0] == 2
    assert is_first == (factor > 1)
    assert sorted(find_sensitive_products(changed, images)) == list(range(9))


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


@needs_export("onnx", "float16")
def test_float16_in_onnx_takes_and_returns_float32(model, images):
    exported = export(model, "onnx")
    exported.components["model"].program = to_float16(exported.program)
    actual, expected = logits(exported.to("cpu"), images), logits(model, images)
    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).abs().max() < 2e-3 * expected.abs().max()
