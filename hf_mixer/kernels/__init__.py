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

from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers.activations import GELUActivation, GELUTanh
from transformers.utils import is_triton_available

from ..layers_mixer import MixerLayer, is_plain


# What `attach_kernels` replaces
OWN_MIX_TOKENS = MixerLayer.mix_tokens


def attach_kernels() -> None:
    """Let every `MixerLayer` of this package use the kernels where they are faster. Done by `import hf_mixer`."""
    if is_triton_available():
        setattr(MixerLayer, "mix_tokens", mix_tokens_if_faster)  # noqa: B010


def use_kernels(model: nn.Module, enabled: bool | None = True) -> nn.Module:
    """
    Choose whether the layers of a model mix tokens with one fused operator, `torch.ops.hf_mixer.token_mixing`.

    The weights stay where they are, nothing is copied, and saved files do not change. A layer uses the operator for
    bfloat16 and float16 on CUDA (by its weights or by autocast), up to 256 patches, `hidden_act` `"gelu"` or
    `"gelu_pytorch_tanh"`, without dropout, and only while its norm and its linear layers are plain ones, without hooks,
    adapters or quantization. Otherwise it computes as before. Works in inference and in training, under
    `torch.compile`, `torch.export` and with gradient checkpointing.

    Args:
        model (`nn.Module`):
            A Mixer of any class, also from remote code, or a module that holds some.
        enabled (`bool`, *optional*, defaults to `True`):
            Whether to use the operator wherever it applies. With `None`, which is how models of this package start, only
            where it is faster than the layer's own code: that is measured when the first batch of a kind arrives, not
            compiled even under `torch.compile`, and the results are compared as well. What is exported by `torch.export` then stays without the operator.

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
    method = {True: mix_tokens, None: mix_tokens_if_faster, False: own_mix_tokens}[enabled]
    for layer in layers:
        setattr(layer, "mix_tokens", MethodType(method, layer))  # noqa: B010
    return model


def own_mix_tokens(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what the code of the layer's class says."""
    is_attached = type(layer).mix_tokens is mix_tokens_if_faster
    return (OWN_MIX_TOKENS if is_attached else type(layer).mix_tokens)(layer, hidden_states)


def mix_tokens_if_faster(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what `own_mix_tokens` does, with the fused operator where it applies and is faster."""
    if not is_on_gpu(hidden_states) or torch.compiler.is_exporting():
        return own_mix_tokens(layer, hidden_states)
    from .selection import measure_layer

    if not applies(layer, hidden_states) or not measure_layer(layer, hidden_states):
        return own_mix_tokens(layer, hidden_states)
    return mix_tokens(layer, hidden_states)


def is_on_gpu(hidden_states: torch.Tensor) -> bool:
    return hidden_states.is_cuda


def mix_tokens(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what `own_mix_tokens` does, with the fused operator where it applies."""
    if not applies(layer, hidden_states):
        return own_mix_tokens(layer, hidden_states)
    dtype, mlp = operand_dtype(layer, hidden_states), layer.token_mixing
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


def operand_dtype(layer: Any, hidden_states: torch.Tensor) -> torch.dtype:
    """Return the type that matrix products have here: that of the weights, or of autocast."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return layer.token_mixing.fc1.weight.dtype


def applies(layer: Any, hidden_states: torch.Tensor) -> bool:
    """Whether the fused operator computes what the layer would, on this device and in this type."""
    from .launching import DTYPES, INTERPRETED
    from .token_mixing import MAX_PATCHES

    mlp = layer.token_mixing
    return (
        (hidden_states.is_cuda or INTERPRETED)
        and operand_dtype(layer, hidden_states) in DTYPES
        and hidden_states.shape[1] <= MAX_PATCHES
        and type(mlp.activation_fn) in (GELUActivation, GELUTanh)
        and (mlp.dropout.p == 0 or not layer.training)
        and is_plain(layer.token_norm, nn.LayerNorm)
        and is_plain(mlp.fc1, nn.Linear)
        and is_plain(mlp.fc2, nn.Linear)
        and not (mlp._forward_hooks or mlp._forward_pre_hooks or mlp._backward_hooks or mlp._backward_pre_hooks)
    )


__all__ = ["use_kernels"]
