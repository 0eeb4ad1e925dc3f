# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Fused kernels for GPUs. They need Triton, which comes with the CUDA builds of torch.

On a GPU the layers of this package use them by themselves where that is faster, which is measured once in a program for
each kind of input. To decide it yourself:

```python
>>> from hf_mixer import MixerForImageClassification
>>> from hf_mixer.kernels import use_kernels

>>> model = MixerForImageClassification.from_pretrained("outputs/photos", dtype="bfloat16", device_map="cuda")
>>> use_kernels(model, enabled=False)  # the layers' own code
>>> use_kernels(model, enabled=True)  # the kernels, wherever they apply
```
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers.utils import is_triton_available

from ..layers_mixer import GELU_APPROXIMATIONS, MixerLayer, is_plain, is_untouched


# A layer mixes along two axes, each with a method, `mix_tokens` and `mix_channels`, a norm, an MLP and an operator
AXES = ("token", "channel")
# What `attach_kernels` replaces
OWN: dict[str, Callable] = {axis: getattr(MixerLayer, f"mix_{axis}s") for axis in AXES}


def attach_kernels() -> None:
    """Let every `MixerLayer` of this package use the kernels where they are faster. Done by `import hf_mixer`."""
    if is_triton_available():
        for axis in AXES:
            setattr(MixerLayer, f"mix_{axis}s", ATTACHED[axis])


def use_kernels(model: nn.Module, enabled: bool | None = True) -> nn.Module:
    """
    Choose whether the layers of a model mix tokens and channels with one fused operator each,
    `torch.ops.hf_mixer.token_mixing` and `torch.ops.hf_mixer.channel_mixing`.

    The weights stay where they are, nothing is copied, and saved files do not change. A layer uses the operators for
    bfloat16 and float16 on CUDA (by its weights or by autocast), `hidden_act` `"gelu"` or `"gelu_pytorch_tanh"`, without
    dropout, and only while the norm and the linear layers in question are plain ones, without hooks, adapters or
    quantization; for tokens up to 256 patches, for channels where `hidden_size` and `channel_mlp_dim` are multiples of 8
    and the device is of compute capability 9.0 (Hopper) or higher. Otherwise it computes as before. Works in inference
    and in training, under `torch.compile`, `torch.export` and with gradient checkpointing.

    Args:
        model (`nn.Module`):
            A Mixer of any class, also from remote code, or a module that holds some.
        enabled (`bool`, *optional*, defaults to `True`):
            Whether to use the operators wherever they apply. With `None`, which is how models of this package start, each
            only where it is faster than the layer's own code: that is measured when the first batch of a kind arrives,
            not compiled even under `torch.compile`, and the results are compared as well. What is exported by
            `torch.export` then stays without the operators.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`.
        `ImportError`: Triton is not installed, and `enabled` is `True`.
    """
    # By name: a model from remote code has a class of its own
    layers = [module for module in model.modules() if type(module).__name__ == "MixerLayer"]
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers.")
    if enabled and not is_triton_available():
        raise ImportError("The kernels need Triton: `pip install triton` (Linux, GPU).")
    if enabled is None and not is_triton_available():
        enabled = False
    for axis in AXES:
        method = {True: _method(mix, axis), None: ATTACHED[axis], False: _method(own_mix, axis)}[enabled]
        for layer in layers:
            setattr(layer, f"mix_{axis}s", MethodType(method, layer))
    return model


def own_mix(axis: str, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what the code of the layer's class says."""
    method = getattr(type(layer), f"mix_{axis}s")
    return (OWN[axis] if method is ATTACHED[axis] else method)(layer, hidden_states)


def mix_if_faster(axis: str, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what `own_mix` does, with the fused operator where it applies and is faster."""
    if not is_on_gpu(hidden_states) or torch.compiler.is_exporting():
        return own_mix(axis, layer, hidden_states)
    from .selection import measure_layer

    if not applies(axis, layer, hidden_states) or not measure_layer(axis, layer, hidden_states):
        return own_mix(axis, layer, hidden_states)
    return mix(axis, layer, hidden_states)


def is_on_gpu(hidden_states: torch.Tensor) -> bool:
    return hidden_states.is_cuda


def mix(axis: str, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what `own_mix` does, with the fused operator where it applies."""
    if not applies(axis, layer, hidden_states):
        return own_mix(axis, layer, hidden_states)
    norm, mlp = norm_and_mlp(axis, layer)
    dtype = operand_dtype(mlp, hidden_states)
    scale = None
    if layer.training and layer.drop_path.drop_prob > 0:
        scale = layer.drop_path(hidden_states.new_ones(hidden_states.shape[0], 1, 1)).flatten()
    weights = [tensor.to(dtype) for tensor in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)]
    arguments = (hidden_states, norm.weight, norm.bias, *weights, scale, norm.eps, has_tanh(mlp))
    if axis == "token":
        return torch.ops.hf_mixer.token_mixing(*arguments)[0]
    keep_hidden = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    return torch.ops.hf_mixer.channel_mixing(*arguments, keep_hidden)[0]


def norm_and_mlp(axis: str, layer: Any) -> tuple[Any, Any]:
    return getattr(layer, f"{axis}_norm"), getattr(layer, f"{axis}_mixing")


def has_tanh(mlp: Any) -> bool:
    """Whether GELU is approximated by a hyperbolic tangent."""
    return GELU_APPROXIMATIONS[type(mlp.activation_fn)] == "tanh"


def operand_dtype(mlp: Any, hidden_states: torch.Tensor) -> torch.dtype:
    """Return the type that matrix products have here: that of the weights, or of autocast."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return mlp.fc1.weight.dtype


def applies(axis: str, layer: Any, hidden_states: torch.Tensor) -> bool:
    """Whether the fused operator computes what the layer would, on this device and in this type."""
    from . import channel_mixing, token_mixing
    from .launching import DTYPES, INTERPRETED

    norm, mlp = norm_and_mlp(axis, layer)
    dtype = operand_dtype(mlp, hidden_states)
    return (
        (hidden_states.is_cuda or INTERPRETED)
        and hidden_states.shape[0] > 0
        and dtype in DTYPES
        and type(mlp.activation_fn) in GELU_APPROXIMATIONS
        and (mlp.dropout.p == 0 or not layer.training)
        and is_plain(norm, nn.LayerNorm)
        and is_plain(mlp.fc1, nn.Linear)
        and is_plain(mlp.fc2, nn.Linear)
        and all(is_untouched(module) for module in (mlp, mlp.activation_fn, mlp.dropout, layer.drop_path))
        and {"token": token_mixing.fits, "channel": channel_mixing.fits}[axis](
            hidden_states, mlp.fc1.out_features, dtype
        )
    )


def _method(function: Callable, axis: str) -> Callable:
    def method(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return function(axis, layer, hidden_states)

    return method


ATTACHED = {axis: _method(mix_if_faster, axis) for axis in AXES}


__all__ = ["use_kernels"]
