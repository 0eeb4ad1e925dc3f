# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for the models that ask for them: see the README beside this file."""

from typing import Any

from torch import nn

from . import cpu, gpu
from .suitability import mixer_layers


def use_kernels(model: nn.Module) -> nn.Module:
    """
    Let the layers of a model compute with fused kernels: on a GPU in inference, on a processor with matrix units also in
    training.

    The layers keep their weights, saved files do not change, and neither do other models. What the kernels do not take is
    computed by the layer's own code, and a warning says why, once for each reason.

    Args:
        model (`nn.Module`):
            A Mixer of any class, also from remote code, or a module that holds some. Its layers have `hidden_act` `"gelu"` or
            `"gelu_pytorch_tanh"`, and no hooks, adapters or quantized weights. On a CUDA device of compute capability 9.0
            (Hopper, such as H100 and H200), `hidden_size`, `token_mlp_dim` and `channel_mlp_dim` are multiples of 8, and the
            weights of type bfloat16 or float16. On a processor with AMX they are multiples of 32, and the weights of type
            bfloat16, or float32 under autocast.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`, or one that the kernels do not suit; then no layer has changed.
        `ImportError`: Triton (GPU) or a C++ compiler (processor) is missing.
        `OSError`: there is no space for temporary files, where the kernels for processors are compiled.
    """
    layers = mixer_layers(model)
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers: the kernels are for Mixers only.")
    kernels = {name: kernels_for(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        kernels[name].require()
        reason = kernels[name].unsupported_layer_reason(layer)
        if reason is not None:
            raise ValueError(f"The kernels cannot be used: `{name or type(layer).__name__}` {reason}.")
    for name, layer in layers.items():
        layer.kernel = kernels[name].compute_layer
    return model


def kernels_for(layer: Any) -> Any:
    """Return the module with the kernels for the device of a layer."""
    weight = next(layer.parameters(), None)
    on_processor = weight is not None and weight.device.type == "cpu" and not gpu.INTERPRETED
    return cpu if on_processor else gpu


__all__ = ["use_kernels"]
