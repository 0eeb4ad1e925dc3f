# SPDX-License-Identifier: Apache-2.0
"""The steps of an image processor as ONNX operators, in front of a network, with the pixels that Pillow computes."""

import numpy as np
import onnx
import onnx_ir
from onnx.helper import make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxscript import OnnxFunction, script
from onnxscript import opset18 as op
from onnxscript.values import Opset
from PIL.Image import Resampling

from .image_steps import ImageSteps, read_steps


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
# Of the functions that are put in front of networks
DOMAIN = Opset("hf_mixer", 1)


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
        of 8 bits become exactly the pixels of [`MixerImageProcessorPil`] with the Pillow that is installed (some are one level
        off where an image is more than 100 times as high as wide). Pixels that need neither resizing nor cropping reach the
        network as they are, and so do those that have one channel already, where the network takes one.

    Raises:
        `ValueError`: The processor has a setting that is not possible here, or does not fit the network.
    """
    channels, height, width = (dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim[1:])
    steps = read_steps(image_processor, channels, height, width)
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


def _constant(values: list[float]) -> onnx.TensorProto:
    """Return a value per channel, for batches of images."""
    return from_array(np.asarray(values, np.float32).reshape(1, -1, 1, 1))


def _resize_and_crop(steps: ImageSteps, target: list[int]) -> OnnxFunction:
    """Return a graph from images of any height and width to images of the height and width `target`."""
    kernel, vertical_first = KERNELS[Resampling(steps.resample)], int(steps.vertical_first)
    resized_size = _resized_size(steps.size)
    scale, shift = map(_constant, (steps.scale, steps.shift))

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
            removed = op.Constant(value_int=vertical_first) * (original - resized)
            if removed[0] > op.Max(2 * removed[1], op.Constant(value_int=0)):
                pixels = op.Transpose(pixels, perm=[0, 1, 3, 2])
                pixels = resample(pixels, original[0], resized[0], first[0], cropped[0])
                pixels = resample(pixels, original[1], resized[1], first[1], cropped[1])
                pixels = op.Transpose(pixels, perm=[0, 1, 3, 2])
            else:
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


def _luminance(steps: ImageSteps) -> OnnxFunction:
    """Return a graph from three channels to one, as Pillow converts RGB to L. One channel stays as it is."""
    scale, shift = map(_constant, (steps.scale, steps.shift))
    weights = _constant([19595, 38470, 7471])

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
