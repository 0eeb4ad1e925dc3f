# SPDX-License-Identifier: Apache-2.0
"""int8 and float16 for exported programs, and how far they are from the model."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from ..modeling_mixer import MixerForImageClassification
from .token_mixing import mix_tokens_by_convolution


if TYPE_CHECKING:
    from transformers.exporters import ExportQuantizer


# The most that a quantized program may deviate, see `deviation`. A model of 0.6 M parameters and 79.8 % on CIFAR-10 loses 0.0 points
# of accuracy on 5,000 test images at 0.01, 0.1 to 0.3 at 0.03, 0.0 to 0.1 at 0.05, 0.1 at 0.06, 0.7 at 0.1, and 32 at 0.7.
MAX_DEVIATION = 0.08
# The operators of ONNX that linear layers become
ONNX_PRODUCTS = ["MatMul", "Gemm"]
# The shares of the linear layers that recipes leave in float, one after the other
FLOAT_SHARES = (1 / 8, 1 / 4, 1 / 2)
NUM_SENSITIVITY_IMAGES = 32
CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Recipe:
    """
    One way to quantize a program.

    Args:
        name (`str`):
            What it does, for people.
        quantizer (`transformers.exporters.ExportQuantizer`):
            What does it, for the configuration of an exporter.
        model ([`MixerForImageClassification`]):
            The model, in the form that suits it.
    """

    name: str
    quantizer: "ExportQuantizer"
    model: MixerForImageClassification


def find_recipes(
    format: str,
    model: MixerForImageClassification,
    calibration: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[Recipe]:
    """
    Yield the ways to quantize a model to int8, the fastest first. The first one is to be taken whose program deviates by no
    more than `MAX_DEVIATION`.

    Args:
        format (`str`):
            A format of `FORMATS`.
        model ([`MixerForImageClassification`]):
            The model, in float32.
        calibration (`torch.Tensor` of shape `(num_images, num_channels, height, width)`, *optional*):
            Images as the image processor returns them, by which activations are scaled once. Without them they are scaled in
            every batch, or left in float.
        batch_size (`int`, *optional*):
            How many of them the program takes at a time, by default any number.

    Raises:
        `ValueError`: int8 is not for this format, or the calibration images are fewer than a batch.
    """
    if format not in RECIPES:
        raise ValueError(
            f"int8 is slower than float32 in the format {format!r}: take float32, or one of {', '.join(RECIPES)}"
        )
    if calibration is not None and len(calibration) < (batch_size or 1):
        raise ValueError(
            f"int8 is scaled by whole batches of {batch_size or 1}, got {len(calibration)} calibration images: give more"
        )
    return RECIPES[format](model, calibration, batch_size)


def deviation(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """
    Return how far the outputs of a quantized program are from those of its model: the root of the mean squared difference,
    over the standard deviation of the model's outputs. A few hundred images are too few to tell half a point of accuracy,
    but enough to tell this.
    """
    expected, actual = expected.double(), actual.double()
    spread = expected.std() if expected.numel() > 1 else expected.abs().max()
    return float((actual - expected).square().mean().sqrt() / spread)


def relative_difference(expected: ArrayLike, actual: ArrayLike) -> float:
    """Return the largest difference of an output, over the largest output."""
    expected, actual = np.asarray(expected), np.asarray(actual)
    # A new classifier may answer 0 to everything
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def find_sensitive_layers(model: MixerForImageClassification, pixel_values: torch.Tensor) -> list[int]:
    """
    Return the places of the linear layers, which may be convolutions over tokens, in the order in which they are called, with
    the one first whose output differs most, for its size, when its input is rounded to 8 bits on one scale.
    """
    errors = []

    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        values = inputs[0]
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = max(high - low, torch.finfo(values.dtype).tiny) / 255
        # Without its hooks
        difference = layer.forward((values / scale).round() * scale) - output
        errors.append(float(difference.square().mean() / output.square().mean().clamp(min=1e-12)))

    # A layer with a hook is called as it is exported
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    handles = [layer.register_forward_hook(measure) for layer in layers]
    try:
        with torch.no_grad():
            model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(range(len(errors)), key=errors.__getitem__, reverse=True)


def to_samples(calibration: torch.Tensor, batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Return whole batches of calibration images, as quantizers take them."""
    batches = calibration.float().split(batch_size)
    return [{"pixel_values": batch} for batch in batches if len(batch) == batch_size]


def choose_float_layers(
    model: MixerForImageClassification, calibration: torch.Tensor
) -> Iterator[tuple[str, list[int]]]:
    """Yield, for each of `FLOAT_SHARES`, the places of the linear layers to leave in float, after a text that says so."""
    order = find_sensitive_layers(model, calibration[:NUM_SENSITIVITY_IMAGES].float())
    for share in FLOAT_SHARES:
        left_out = order[: round(share * len(order))]
        if left_out:
            yield f"{len(left_out)} of {len(order)} linear layers in float", left_out


def onnx_recipes(
    model: MixerForImageClassification, calibration: torch.Tensor | None, batch_size: int | None
) -> Iterator[Recipe]:
    """Yield recipes by ONNX Runtime."""
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    # Weights of 7 bits: processors without VNNI instructions saturate sums of two products with 8. It costs no accuracy.
    weights = {"per_channel": True, "reduce_range": True}
    in_every_batch = Recipe(
        "weights per channel, activations scaled in every batch",
        OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(**weights, op_types_to_quantize=ONNX_PRODUCTS)),
        model,
    )
    if calibration is None:
        yield in_every_batch
        return
    samples = to_samples(calibration, batch_size or min(CALIBRATION_BATCH, len(calibration)))
    model = mix_tokens_by_convolution(model)
    products = [*ONNX_PRODUCTS, "Conv"]

    class StaticQuantizer(OnnxRuntimeQuantizer):
        """Leaves products in float by their place in the graph, whose names are not known before."""

        def __init__(self, left_out: list[int]):
            # The mean of the extremes of large batches deviates less than the extremes of all, that of single images more
            options = {"CalibMovingAverage": batch_size is None}
            config = OnnxRuntimeStaticConfig(**weights, op_types_to_quantize=products, extra_options=options)
            super().__init__(config, samples)
            self.left_out = left_out

        def quantize(self, model, sample_inputs, export_format):
            # Patches are embedded in float: int8 changes neither the accuracy nor the speed of the model of `MAX_DEVIATION`
            patches, *names = [node.name for node in model.graph if node.op_type in products]
            self.config.nodes_to_exclude = [patches, *(names[place] for place in self.left_out)]
            return super().quantize(model, sample_inputs, export_format)

    name = f"weights per channel, activations scaled by {len(calibration)} images"
    yield Recipe(name, StaticQuantizer([]), model)
    for words, left_out in choose_float_layers(model, calibration):
        yield Recipe(f"{name}, {words}", StaticQuantizer(left_out), model)
    yield in_every_batch


def openvino_recipes(
    model: MixerForImageClassification, calibration: torch.Tensor | None, batch_size: int | None
) -> Iterator[Recipe]:
    """Yield recipes by NNCF."""
    import nncf

    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig, NNCFWeightCompressionConfig

    weights_alone = Recipe(
        "weights per channel, activations in float", NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig()), model
    )
    if calibration is None:
        yield weights_alone
        return
    samples = to_samples(calibration, batch_size or 1)
    model = mix_tokens_by_convolution(model)

    class StaticQuantizer(NNCFOpenVINOQuantizer):
        """Leaves products in float by their place in the graph, whose names are not known before."""

        def __init__(self, preset: nncf.QuantizationPreset, left_out: list[int]):
            # SmoothQuant of NNCF 3.4 scales the tokens wrongly: the model of `MAX_DEVIATION` loses 32 points
            parameters = nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            )
            config = NNCFQuantizationConfig(preset=preset, subset_size=len(samples), advanced_parameters=parameters)
            super().__init__(config, samples)
            self.left_out = left_out

        def quantize(self, model, sample_inputs, export_format):
            products = [op for op in model.get_ordered_ops() if op.get_type_name() in ("MatMul", "Convolution")]
            _patches, *names = [op.get_friendly_name() for op in products]
            if self.left_out:
                self.config.ignored_scope = nncf.IgnoredScope(names=[names[place] for place in self.left_out])
            return super().quantize(model, sample_inputs, export_format)

    symmetric, asymmetric = nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED
    name = f"weights per channel, activations scaled by {len(calibration)} images"
    # OpenVINO takes 0.67 of the time for the model of `MAX_DEVIATION` with symmetric activations, 0.92 for B/16
    yield Recipe(f"{name}, symmetric", StaticQuantizer(symmetric, []), model)
    yield Recipe(name, StaticQuantizer(asymmetric, []), model)
    for words, left_out in choose_float_layers(model, calibration):
        yield Recipe(f"{name}, {words}", StaticQuantizer(asymmetric, left_out), model)
    yield weights_alone


def executorch_recipes(
    model: MixerForImageClassification, calibration: torch.Tensor | None, batch_size: int | None
) -> Iterator[Recipe]:
    """Yield recipes by torchao, for XNNPACK."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    from transformers.exporters import PT2EQuantizer

    # Scaled by images, they take 0.95 of the time and deviate 5 times as much
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = PT2EQuantizer(XNNPACKQuantizer().set_global(config))
    yield Recipe("weights per channel, activations scaled for every token", quantizer, model)


RECIPES = {
    "onnx": onnx_recipes,
    "transformers.js": onnx_recipes,
    "openvino": openvino_recipes,
    "executorch": executorch_recipes,
}


def to_float16(program: Any) -> Any:
    """
    Return a program of ONNX (`onnx_ir.Model`) with weights and activations in float16, and its inputs and outputs in float32.
    """
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return onnx_ir.from_proto(convert_float_to_float16(onnx_ir.to_proto(program), keep_io_types=True))


class HalfLinear(nn.Module):
    """A linear layer in float16 between others in float32."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.half()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden_states.half()).float()


def halve(model: MixerForImageClassification, format: str) -> MixerForImageClassification:
    """
    Return a copy of a model in float16, with its inputs and outputs. For ExecuTorch the linear layers alone are: XNNPACK sums up
    in float16, which LayerNorm overflows.
    """
    model = copy.deepcopy(model)
    if format != "executorch":
        return model.half()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, HalfLinear(child))
    return model
