# SPDX-License-Identifier: Apache-2.0
"""The steps of an image processor as ONNX operators, in front of a network, with the pixels that Pillow computes."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx.helper import make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxscript import OnnxFunction, script
from onnxscript import opset18 as op
from onnxscript.values import Opset
from PIL.Image import Resampling

from ..image_processing_pil_mixer import MixerImageConversion


FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


@dataclass
class Steps:
    """
    What an image processor does to an image of three channels, in this order.

    Args:
        num_channels (`int`):
            1: compute the luminance. 3: keep the channels.
        size (`list[int]`, `int` or `None`):
            Resize to this height and width, or the shorter side to this length, or not at all.
        resample (`int`):
            The filter of the resize.
        crop_size (`list[int]` or `None`):
            Crop the center to this height and width, or not at all.
        scale, shift (`np.ndarray` of shape `(1, num_channels or 1, 1, 1)`):
            Rescale and normalize pixels between 0 and 255: `scale * pixels + shift`.
    """

    num_channels: int
    size: list[int] | int | None
    resample: int
    crop_size: list[int] | None
    scale: np.ndarray
    shift: np.ndarray


def add_preprocessing(network: onnx.ModelProto, image_processor) -> onnx.ModelProto:
    """
    Let a network take RGB images of any size: put the resize, the center crop and the conversion to luminance of an image
    processor in front of it, in basic operators that every runtime has.

    Args:
        network (`onnx.ModelProto`):
            A network with one input of shape `(batch_size, num_channels, height, width)` in float32, where only the batch
            size varies. It is left as it is.
        image_processor ([`MixerImageProcessor`] or [`MixerImageProcessorPil`]):
            The processor. Its resize may be bilinear or bicubic.

    Returns:
        `onnx.ModelProto`: The network with an input of the same name and shape `(batch_size, 3, any height, any width)`:
        pixels that are rescaled and normalized by the processor, but neither resized nor cropped. Those of an image of 8
        bits become the pixels of [`MixerImageProcessorPil`], a few of them one level off. An image that needs neither
        resizing nor cropping reaches the network as it is.

    Raises:
        `ValueError`: The processor has a setting that is not possible here, or does not fit the network.
    """
    steps = read_steps(image_processor)
    channels, height, width = (dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim[1:])
    made = steps.crop_size or steps.size or [height, width]
    if steps.num_channels != channels or made != [height, width]:
        raise ValueError(
            f"Expected an image processor that makes images of {channels} channels and {height} x {width} pixels, as the "
            f"model takes them, got `num_channels={steps.num_channels}`, `size={steps.size}` and "
            f"`crop_size={steps.crop_size}`. Change its settings."
        )
    if steps.size or steps.crop_size:
        network = _prepend(_resize_and_crop(steps, [height, width]), channels, network)
    if channels == 1:
        network = _prepend(_luminance(steps), "channels", network)
    return network


def read_steps(image_processor) -> Steps:
    """
    Read the settings of an image processor.

    Raises:
        `ValueError`: One of them is not possible in ONNX operators.
    """
    if not isinstance(image_processor, MixerImageConversion):
        raise ValueError(
            f"Expected a MixerImageProcessor, whose steps are known, got a {type(image_processor).__name__}."
        )
    settings = image_processor.to_dict()
    if settings["num_channels"] not in (1, 3):
        raise ValueError(f"Expected an image processor with `num_channels` 1 or 3, got {settings['num_channels']}.")
    if settings.get("do_pad"):
        raise ValueError("Expected an image processor with `do_pad=False`: images are not padded in ONNX operators.")
    size = crop_size = None
    if settings["do_resize"]:
        size = _read_size(settings["size"])
        if settings["resample"] not in KERNELS:
            raise ValueError(
                f"Expected an image processor with `resample` {Resampling.BILINEAR} (bilinear) or "
                f"{Resampling.BICUBIC} (bicubic), got {settings['resample']}."
            )
    if settings.get("do_center_crop"):
        crop_size = _read_size(settings["crop_size"])
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    mean, std = (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else (0.0, 1.0)
    shape = (1, np.size(std), 1, 1)
    scale, shift = np.reshape(factor / np.asarray(std), shape), np.reshape(-np.asarray(mean) / std, shape)
    return Steps(settings["num_channels"], size, settings["resample"], crop_size, scale, shift)


def _read_size(size: dict[str, int]) -> list[int] | int:
    """Return a fixed height and width, or the length of the shorter side."""
    if size.keys() == {"height", "width"}:
        return [size["height"], size["width"]]
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    raise ValueError(
        f"Expected an image processor whose sizes give `height` and `width`, or `shortest_edge` alone, got {size}."
    )


# The functions that are marked as scripts become graphs. Sizes, positions and weights are in float64, as in Pillow; they
# are few, and a browser computes them on its CPU.
domain = Opset("hf_mixer", 1)


@script(domain, default_opset=op)
def triangle(x):
    return op.Max(1.0 - op.Abs(x), 0.0)


@script(domain, default_opset=op)
def cubic(x):
    x = op.Abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
    return op.Where(x < 1.0, near, op.Where(x < 2.0, far, 0.0 * x))


KERNELS = {Resampling.BILINEAR: triangle, Resampling.BICUBIC: cubic}


def _resize_and_crop(steps: Steps, target: list[int]) -> OnnxFunction:
    """Return a graph from images of any height and width to images of the height and width `target`."""
    kernel = KERNELS[Resampling(steps.resample)]
    resized_size = _resized_size(steps.size)
    scale, shift = from_array(np.float32(steps.scale)), from_array(np.float32(steps.shift))
    target_size = from_array(np.float64(target))

    @script(domain, default_opset=op)
    def resample(pixels, original, resized, first, count):
        """
        Resample the columns of images from `original` to `resized` ones, and keep `count` of them from `first` on. Rows and
        columns change places.
        """
        column = op.Range(0.0, original, 1.0)
        position = op.Unsqueeze(first + op.Range(0.0, count, 1.0), [1])
        distance = (2.0 * column + 1.0) * resized - (2.0 * position + 1.0) * original
        weights = kernel(distance / (2.0 * op.Max(original, resized)))
        inside = op.Cast(op.And(position >= 0.0, position < resized), to=DOUBLE)
        weights = weights * inside / op.Max(op.ReduceSum(weights, [1], keepdims=1), 0.25)

        # Pillow counts in units of 2**-22. Products of that many bits are exact in float32 in two parts.
        units = op.Transpose(op.Floor(weights * 4194304.0 + 0.5))
        high = op.Floor(units / 2048.0 + 0.5)
        low = units - 2048.0 * high
        high_sum = op.MatMul(pixels, op.Cast(high, to=FLOAT))
        low_sum = op.MatMul(pixels, op.Cast(low, to=FLOAT))
        rounded = op.Floor((high_sum + op.Floor(low_sum / 2048.0) + 1024.0) / 2048.0)
        return op.Transpose(op.Clip(rounded, 0.0, 255.0), perm=[0, 1, 3, 2])

    @script(domain, default_opset=op)
    def resize_and_crop(pixel_values):
        original = op.Cast(op.Shape(pixel_values, start=2, end=4), to=DOUBLE)
        target = op.Constant(value=target_size)
        resized = resized_size(original)
        changes = op.Abs(resized - original) + op.Abs(target - original)
        if op.ReduceMax(changes, keepdims=0) == 0.0:
            result = op.Identity(pixel_values)
        else:
            # Rounded as `center_crop` of the processor does it, and transformers where an image is smaller than the crop
            margin = (resized - target) / 2.0
            first = op.Where(op.ReduceMin(margin, keepdims=0) < 0.0, op.Floor(margin), op.Round(margin))
            pixels = op.Floor((pixel_values - op.Constant(value=shift)) / op.Constant(value=scale) + 0.5)
            pixels = resample(pixels, original[1], resized[1], first[1], target[1])
            pixels = resample(pixels, original[0], resized[0], first[0], target[0])
            result = pixels * op.Constant(value=scale) + op.Constant(value=shift)
        return result

    return resize_and_crop


def _resized_size(size: list[int] | int | None) -> OnnxFunction:
    """Return a graph from the height and width of an image to those after the resize."""
    length = from_array(np.float64(size or 0))

    @script(domain, default_opset=op)
    def fixed_size(original):
        return op.Constant(value=length)

    @script(domain, default_opset=op)
    def shorter_side(original):
        return op.Floor(op.Constant(value=length) * original / op.ReduceMin(original))

    @script(domain, default_opset=op)
    def same_size(original):
        return op.Identity(original)

    if size is None:
        return same_size
    return shorter_side if isinstance(size, int) else fixed_size


def _luminance(steps: Steps) -> OnnxFunction:
    """Return a graph from three channels to one, as Pillow converts RGB to L. One channel stays as it is."""
    scale, shift = from_array(np.float32(steps.scale)), from_array(np.float32(steps.shift))
    weights = from_array(np.float32([19595, 38470, 7471]).reshape(1, 3, 1, 1))

    @script(domain, default_opset=op)
    def luminance(pixel_values):
        if op.Squeeze(op.Shape(pixel_values, start=1, end=2)) == 1:
            result = op.Identity(pixel_values)
        else:
            pixels = op.Floor((pixel_values - op.Constant(value=shift)) / op.Constant(value=scale) + 0.5)
            total = op.ReduceSum(pixels * op.Constant(value=weights), [1], keepdims=1)
            rounded = op.Floor((total + 32768.0) / 65536.0)
            result = rounded * op.Constant(value=scale) + op.Constant(value=shift)
        return result

    return luminance


def _prepend(function: OnnxFunction, channels: int | str, network: onnx.ModelProto) -> onnx.ModelProto:
    """
    Let images of any height and width go through a function before they enter a network. `channels` is their number, or its
    name where it varies.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    name = graph.input[0].name
    processed = f"{function.name}/{name}"
    for node in graph.node:
        node.input[:] = [processed if used == name else used for used in node.input]
    graph.node.insert(0, make_node(function.name, [name], [processed], domain=function.opset.domain))
    batch_size = graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch_size.dim_param or batch_size.dim_value, channels, "height", "width"]
    graph.input[0].CopyFrom(make_tensor_value_info(name, FLOAT, shape))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for part in [*function.to_model_proto().functions, function.to_function_proto()]:
        # Its operators mean the same in the network's version
        for opset in part.opset_import:
            opset.version = versions.get(opset.domain, opset.version)
        model.functions.append(part)
    model.opset_import.append(make_opsetid(function.opset.domain, function.opset.version))
    return model
