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
Fused kernels for NVIDIA GPUs. They need Triton, which comes with the CUDA builds of torch.

A model runs without them unless it is told otherwise:

```python
>>> from hf_mixer import MixerForImageClassification
>>> from hf_mixer.kernels import use_kernels

>>> model = MixerForImageClassification.from_pretrained("outputs/photos", dtype="bfloat16", device_map="cuda")
>>> use_kernels(model)  # and back with use_kernels(model, enabled=False)
```
"""

from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers.activations import GELUActivation, GELUTanh
from transformers.utils import is_triton_available

from ..modeling_mixer import is_plain


def use_kernels(model: nn.Module, enabled: bool = True) -> nn.Module:
    """
    Let the layers of a model mix tokens with one fused operator, `torch.ops.hf_mixer.token_mixing`.

    The weights stay where they are, nothing is copied, and saved files do not change. A layer uses the operator for
    bfloat16 and float16 on CUDA (by its weights or by autocast), up to 256 patches, `hidden_act` `"gelu"` or
    `"gelu_pytorch_tanh"`, without dropout, and only while its norm and its linear layers are plain ones, without hooks,
    adapters or quantization. Otherwise it computes as before. Works in inference and in training, under
    `torch.compile`, `torch.export` and with gradient checkpointing.

    Args:
        model (`nn.Module`):
            A Mixer of any class, or a module that holds some.
        enabled (`bool`, *optional*, defaults to `True`):
            Whether to use the operator or to go back to the layers' own code.

    Returns:
        `nn.Module`: `model`.

    Raises:
        `ValueError`: there is no Mixer layer in `model`.
        `ImportError`: Triton is not installed.
    """
    # By name: a model from remote code has a class of its own
    layers = [module for module in model.modules() if type(module).__name__ == "MixerLayer"]
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers.")
    if enabled and not is_triton_available():
        raise ImportError("The kernels need Triton: `pip install triton` (Linux, NVIDIA GPU).")
    if enabled:
        from . import token_mixing  # noqa: F401  registers the operators
    for layer in layers:
        vars(layer).pop("mix_tokens", None)
        if enabled:
            setattr(layer, "mix_tokens", MethodType(mix_tokens, layer))  # noqa: B010
    return model


def mix_tokens(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what `layer.mix_tokens` does, with the fused operator where it applies."""
    device_type, mlp = hidden_states.device.type, layer.token_mixing
    dtype = mlp.fc1.weight.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    if not applies(layer, hidden_states, dtype):
        return type(layer).mix_tokens(layer, hidden_states)

    scale = None
    if layer.training and layer.drop_path.drop_prob > 0:
        scale = layer.drop_path(hidden_states.new_ones(hidden_states.shape[0], 1, 1)).flatten()
    return torch.ops.hf_mixer.token_mixing(
        hidden_states,
        layer.token_norm.weight,
        layer.token_norm.bias,
        mlp.fc1.weight.to(dtype),
        mlp.fc1.bias.to(dtype),
        mlp.fc2.weight.to(dtype),
        mlp.fc2.bias.to(dtype),
        scale,
        layer.token_norm.eps,
        type(mlp.activation_fn) is GELUTanh,
    )[0]


def applies(layer: Any, hidden_states: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the fused operator computes what the layer would, on this device and in this type."""
    from .token_mixing import DTYPES, INTERPRETED, MAX_PATCHES

    mlp = layer.token_mixing
    return (
        (hidden_states.is_cuda or INTERPRETED)
        and dtype in DTYPES
        and hidden_states.shape[1] <= MAX_PATCHES
        and type(mlp.activation_fn) in (GELUActivation, GELUTanh)
        and (mlp.dropout.p == 0 or not layer.training)
        and is_plain(layer.token_norm, nn.LayerNorm)
        and is_plain(mlp.fc1, nn.Linear)
        and is_plain(mlp.fc2, nn.Linear)
        and not (mlp._forward_hooks or mlp._forward_pre_hooks or mlp._backward_hooks or mlp._backward_pre_hooks)
    )


__all__ = ["use_kernels"]
