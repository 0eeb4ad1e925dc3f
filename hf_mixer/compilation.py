# SPDX-License-Identifier: Apache-2.0
"""Inference with compiled code."""

import functools
import math
from typing import Any

import torch
from torch import nn

from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_mixer import to_pair
from .layers_mixer import is_plain, multiplies


# The hidden units that caches hold beside the weights, and the images that share one reading of the weights. In bfloat16 on two
# cores of an Intel Xeon with AMX, B/16 computes 64 images in parts of 8, which have 4.8 million hidden units, in 0.7 of the
# time that it takes for all at once; parts of 16 take 1.08 times as long. For 8 images of L/16, parts of 4 take 1.07 times as
# long as one part.
MAX_HIDDEN_UNITS, MIN_IMAGES = 5_000_000, 8


def compile_for_inference(model: PreTrainedModel, batch_size: int = 1) -> PreTrainedModel:
    """
    Compile a model in place, for the fastest inference that `torch.compile` gives. It takes from ten seconds to a minute.

    On a CPU, the weights become constants of the code, in the layout that its matrix products read; later changes of the
    model have no effect. On CUDA, the code runs as a graph, which leaves out the time to start each of its parts.

    Code is made for one size of batches, and others are brought to it: larger ones are computed in parts, the last part is
    filled up. On a CPU, large batches are computed in several parts as well, so that the hidden units fit into its caches.

    In bfloat16, on a processor with matrix units for it (AMX), the layers compute with the kernels of `hf_mixer.kernels` where
    they suit and there are at least as many images in a batch as threads.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A Mixer of any class, on its device and in the type to compute in, which may be quantized. Compile after
            [`~hf_mixer.kernels.use_kernels`]. The number of CPU threads that torch has now stays in the code.
        batch_size (`int`, *optional*, defaults to 1):
            Images in the batches that will come.

    Returns:
        [`~transformers.PreTrainedModel`]: `model`, in evaluation mode. It takes `pixel_values` and computes no gradients and
        no loss.

    Raises:
        `ValueError`: `batch_size` is less than 1 or, when the model is called, there is anything beside `pixel_values`, or
            they do not fit the model.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> import hf_mixer

    >>> classifier = pipeline("image-classification", "outputs/photos", dtype="bfloat16", batch_size=16)
    >>> hf_mixer.compile_for_inference(classifier.model, batch_size=16)
    ```"""
    if batch_size < 1:
        raise ValueError(f"`batch_size` has to be at least 1, got {batch_size}")
    model.eval()
    on_cpu, dtype, config = model.device.type == "cpu", model.dtype, model.config
    image_shape = (config.num_channels, *to_pair(config.image_size))
    with_kernels = False
    if on_cpu and (multiplies(dtype) or (dtype == torch.float32 and batch_size > 1)):
        from .kernels import cpu  # which registers operators
        from .kernels.suitability import mixer_layers

        with_kernels = (
            dtype == torch.bfloat16 and batch_size >= torch.get_num_threads() and cpu.use_where_possible(model)
        )
        for layer in mixer_layers(model).values():
            layer.kernel = cpu.PackedLayer(layer) if with_kernels else compute_layer
    if on_cpu and not with_kernels:
        largest = max(MIN_IMAGES, MAX_HIDDEN_UNITS // (config.num_patches * config.channel_mlp_dim))
        batch_size = math.ceil(batch_size / math.ceil(batch_size / largest))
    plain = model.forward

    def compute(pixel_values: torch.Tensor) -> ModelOutput:
        return plain(pixel_values)

    how: dict[str, Any] = {"mode": "reduce-overhead"}
    if on_cpu:
        # To look in every call whether anything in the model has changed takes 3 to 7 % of the time of a small one. Dynamo finds
        # what it has compiled by the code of the function, so that each model needs its own.
        compute.__code__ = compute.__code__.replace()
        how = {"options": {"freezing": True, "guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}}
    compiled = torch.compile(compute, fullgraph=True, dynamic=False, **how)
    example = torch.zeros(batch_size, *image_shape, dtype=dtype, device=model.device)

    @functools.wraps(plain)
    def forward(pixel_values: torch.Tensor | None = None, **kwargs) -> ModelOutput:
        others = [name for name, value in kwargs.items() if value is not None]
        if others:
            raise ValueError(
                f"a model that was compiled for inference takes `pixel_values` alone, got {', '.join(others)}"
            )
        if pixel_values is None or pixel_values.shape[1:] != image_shape or not pixel_values.is_floating_point():
            return plain(pixel_values)  # which says what is wrong
        parts = []
        # Inductor makes no constants of weights in inference mode, and autocast would have the code compiled anew
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(example.device.type, enabled=False):
            if on_cpu and is_alike(pixel_values, example):
                return compiled(pixel_values)
            for images in pixel_values.split(batch_size):
                # What is not alike would be compiled anew
                filled = torch.zeros_like(example)
                filled[: len(images)] = images
                outputs = compiled(filled)
                parts.append({name: take(value, len(images)) for name, value in outputs.items()})
            return type(outputs)({name: join([part[name] for part in parts]) for name in parts[0]})

    from torch._inductor import config as inductor_config  # which takes a second to import

    # As of torch 2.13, Dynamo looks at this setting while it makes the graph, and the option of `torch.compile` comes later
    with inductor_config.patch(freezing=on_cpu):
        forward(example)
    model.forward = forward
    return model


def compute_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """
    Return what a layer computes without kernels, with token mixing in the form that is fastest as compiled code, or `None`
    where the layer has to do it: packed weights and GELU in the first product, no transposed copy in the second. B/16 in
    bfloat16, 8 images, takes 1.06 times as long with two products from the left, and 1.00 times with two of `nn.Linear` (1.08
    times at 64 images), on two cores of an Intel Xeon with AMX, torch 2.13. In float32 two products from the left take 1.06 times
    as long as well, but 0.99 times for one image of S/16.
    """
    norm, mlp = layer.token_norm, layer.token_mixing
    if not (is_plain(mlp.fc1, nn.Linear) and is_plain(mlp.fc2, nn.Linear)):
        return None
    batch_size, num_patches, hidden_size = hidden_states.shape
    columns = norm(hidden_states).transpose(1, 2).reshape(-1, num_patches)
    hidden = mlp.activation_fn(mlp.fc1(columns)).view(batch_size, hidden_size, -1)
    mixed = torch.bmm(mlp.fc2.weight.expand(batch_size, -1, -1), hidden.transpose(1, 2))
    return layer.mix_channels(mixed + mlp.fc2.bias.unsqueeze(-1) + hidden_states)


def is_alike(pixel_values: torch.Tensor, example: torch.Tensor) -> bool:
    """Whether `pixel_values` differ from `example` in nothing but their values, as far as compiled code is concerned."""
    return (
        type(pixel_values) is torch.Tensor
        and (pixel_values.shape, pixel_values.stride()) == (example.shape, example.stride())
        and (pixel_values.dtype, pixel_values.device) == (example.dtype, example.device)
        and not (pixel_values.requires_grad or pixel_values.is_inference())
    )


def take(value: Any, num_images: int) -> Any:
    """Return a copy of what an output says of the first images. The next call may write where `value` is."""
    if isinstance(value, tuple):
        return tuple(take(element, num_images) for element in value)
    return value[:num_images].clone()


def join(values: list[Any]) -> Any:
    """Return what the outputs of several batches say of all images."""
    if isinstance(values[0], tuple):
        return tuple(join(list(elements)) for elements in zip(*values))
    return torch.cat(values)
