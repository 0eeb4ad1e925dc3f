# SPDX-License-Identifier: Apache-2.0
"""The steps of an image processor as ONNX operators, in front of a network, with the pixels that Pillow computes."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
from onnx.helper import make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxscript import OnnxFunction, script
from onnxscript import opset18 as op
from onnxscript.values import Opset
from PIL.Image import Resampling

from ..image_processing_pil_mixer import MixerImageConversion


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
# Of the functions that are put in front of networks
DOMAIN = Opset("hf_mixer", 1)


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
        pixels that are rescaled and normalized as the processor does it, but neither resized nor cropped. Those of an image
        of 8 bits become exactly the pixels of [`MixerImageProcessorPil`] (some are one level off where an image is more than
        100 times as high as wide). Pixels that need neither resizing nor cropping reach the network as they are, and so do
        those that have one channel already, where the network takes one.

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


def remove_preprocessing(model: onnx_ir.Model) -> None:
    """Take what [`add_preprocessing`] added out of a model, for pixels as the image processor itself returns them."""
    for node in [node for node in model.graph if node.domain == DOMAIN.domain]:
        (images,) = node.inputs
        if images is not None:  # as the types of onnx_ir allow
            node.outputs[0].replace_all_uses_with(images)
        model.graph.remove(node, safe=True)


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
    size: list[int] | int | None = None
    crop_size: list[int] | None = None
    if settings["do_resize"]:
        size = _read_size(settings["size"])
        if settings["resample"] not in KERNELS:
            raise ValueError(
                f"Expected an image processor with `resample` {Resampling.BILINEAR} (bilinear) or "
                f"{Resampling.BICUBIC} (bicubic), got {settings['resample']}."
            )
    if settings.get("do_center_crop"):
        crop_size = [settings["crop_size"]["height"], settings["crop_size"]["width"]]
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


# What is marked as a script is no Python: onnxscript makes a graph of it. Sizes and weights are whole numbers, in int64, which
# are the same on every device. float64 is missing in browsers.


@script(DOMAIN, default_opset=op)
def triangle(distance, unit):
    return unit - op.Min(distance, unit)


@script(DOMAIN, default_opset=op)
def cubic(distance, unit):
    x = op.Min(distance, 2 * unit)
    near = (3 * x - 5 * unit) * x * x + 2 * unit * unit * unit
    far = ((5 * unit - x) * x - 8 * unit * unit) * x + 4 * unit * unit * unit
    return op.Where(x < unit, near, far)


# Pillow's kernels, of a distance from the center in fractions of a unit. The values are whole numbers, of any scale.
KERNELS = {Resampling.BILINEAR: triangle, Resampling.BICUBIC: cubic}


def _resize_and_crop(steps: Steps, target: list[int]) -> OnnxFunction:
    """Return a graph from images of any height and width to images of the height and width `target`."""
    kernel = KERNELS[Resampling(steps.resample)]
    resized_size = _resized_size(steps.size)
    scale, shift = from_array(np.float32(steps.scale)), from_array(np.float32(steps.shift))

    @script(DOMAIN, default_opset=op)
    def resample(pixels, original, resized, first, count):
        """
        Resize images of `original` columns to `resized` ones, and keep `count` of them from `first` on. Rows and columns
        change places.
        """
        column = op.Range(0, original, 1)
        position = op.Unsqueeze(first + op.Range(0, count, 1), [1])
        larger = op.Max(original, resized)
        # 1 up to 8192 pixels. Above, powers of the distance would be too large for int64.
        divisor = (larger + 8191) / 8192
        distance = op.Abs((2 * column + 1) * resized - (2 * position + 1) * original) / divisor
        weight = kernel(distance, 2 * larger / divisor)
        total = op.ReduceSum(weight, [1], keepdims=1)
        excess = total / 1125899906842624 + 1
        # There is nothing to see beside the image, in a crop that is larger
        inside = op.Cast(op.And(position >= 0, position < resized), to=INT64)
        weight = weight * inside / excess
        total = op.Max(total / excess, 1)

        # Pillow rounds weights to multiples of 2**-22. Products with the pixels are exact in float32 in two parts of 11 bits.
        # (`Sign` of int64 is wrong in ONNX Runtime 1.30 above 32 bits.)
        sign = op.Where(weight < 0, op.Constant(value_int=-1), op.Constant(value_int=1))
        dividend = op.Abs(weight) * 2048
        high = dividend / total
        low = ((dividend - high * total) * 4096 + total) / (2 * total)
        high_sum = op.MatMul(pixels, op.Transpose(op.Cast(sign * high, to=FLOAT)))
        low_sum = op.MatMul(pixels, op.Transpose(op.Cast(sign * low, to=FLOAT)))
        rounded = op.Floor((high_sum + op.Floor(low_sum / 2048.0) + 1024.0) / 2048.0)
        return op.Transpose(op.Clip(rounded, 0.0, 255.0), perm=[0, 1, 3, 2])

    @script(DOMAIN, default_opset=op)
    def resize_and_crop(pixel_values):
        original = op.Shape(pixel_values, start=2, end=4)
        cropped = op.Constant(value_ints=target)
        resized = resized_size(original)
        changes = op.Abs(resized - original) + op.Abs(cropped - original)
        if op.ReduceMax(changes, keepdims=0) == 0:
            result = op.Identity(pixel_values)
        else:
            # Rounded as `center_crop` of the processor does it, and transformers where an image is smaller than the crop
            margin = op.Cast(resized - cropped, to=FLOAT) / 2.0
            rounded = op.Where(op.ReduceMin(margin, keepdims=0) < 0.0, op.Floor(margin), op.Round(margin))
            first = op.Cast(rounded, to=INT64)
            pixels = op.Floor((pixel_values - op.Constant(value=shift)) / op.Constant(value=scale) + 0.5)
            pixels = resample(pixels, original[1], resized[1], first[1], cropped[1])
            pixels = resample(pixels, original[0], resized[0], first[0], cropped[0])
            result = pixels * op.Constant(value=scale) + op.Constant(value=shift)
        return result

    return resize_and_crop


def _resized_size(size: list[int] | int | None) -> OnnxFunction:
    """Return a graph from the height and width of an image to those after the resize."""
    length = from_array(np.asarray(size or 0, np.int64))

    @script(DOMAIN, default_opset=op)
    def fixed_size(original):
        return op.Constant(value=length)

    @script(DOMAIN, default_opset=op)
    def shorter_side(original):
        return op.Constant(value=length) * original / op.ReduceMin(original)

    @script(DOMAIN, default_opset=op)
    def same_size(original):
        return op.Identity(original)

    if size is None:
        return same_size
    return shorter_side if isinstance(size, int) else fixed_size


def _luminance(steps: Steps) -> OnnxFunction:
    """Return a graph from three channels to one, as Pillow converts RGB to L. One channel stays as it is."""
    scale, shift = from_array(np.float32(steps.scale)), from_array(np.float32(steps.shift))
    weights = from_array(np.asarray([19595, 38470, 7471], np.float32).reshape(1, 3, 1, 1))

    @script(DOMAIN, default_opset=op)
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
    graph.node.insert(0, make_node(function.name, [name], [processed], domain=DOMAIN.domain))
    batch_size = graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch_size.dim_param or batch_size.dim_value, channels, "height", "width"]
    graph.input[0].CopyFrom(make_tensor_value_info(name, FLOAT, shape))

    versions = {opset.domain: opset.version for opset in network.opset_import}
    for part in [*function.to_model_proto().functions, function.to_function_proto()]:
        for opset in part.opset_import:
            # The operators mean the same in the version of the network, and a model has one version
            opset.version = versions.get(opset.domain, opset.version)
        model.functions.append(part)
    if DOMAIN.domain not in versions:
        model.opset_import.append(make_opsetid(DOMAIN.domain, DOMAIN.version))
    return model
