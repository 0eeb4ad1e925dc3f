# SPDX-License-Identifier: Apache-2.0
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

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from transformers.utils import is_triton_available

from ..layers_mixer import GELU_APPROXIMATIONS, MixerLayer, is_plain, is_untouched


# A layer mixes along two axes, each with a method, `mix_tokens` and `mix_channels`, a norm, an MLP and an operator
AXES = ("token", "channel")
# The layer's own code
OWN: dict[str, Callable] = {axis: inspect.unwrap(getattr(MixerLayer, f"mix_{axis}s")) for axis in AXES}


def attach_kernels(layer_class: type[nn.Module] = MixerLayer, by_default: bool | None = None) -> None:
    """
    Let the layers of a class use the kernels: as [`use_kernels`] says, and `by_default` where it has said nothing.
    `import hf_mixer` does it for its own layers.
    """
    for axis in AXES:
        name = f"mix_{axis}s"
        own = vars(layer_class)[name]
        if is_triton_available() and inspect.unwrap(own) is own:
            setattr(layer_class, name, _mix_as_chosen(axis, own, by_default))


def _mix_as_chosen(axis: str, own: Callable, by_default: bool | None) -> Callable:
    @wraps(own)
    def method(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        choice = getattr(layer, "uses_kernels", by_default)
        if takes_part(choice, axis, layer, hidden_states):
            return mix(axis, layer, hidden_states)
        return own(layer, hidden_states)

    return method


def use_kernels(model: nn.Module, enabled: bool | None = True) -> nn.Module:
    """
    Choose whether the layers of a model mix tokens and channels with one fused operator each,
    `torch.ops.hf_mixer.token_mixing` and `torch.ops.hf_mixer.channel_mixing`.

    The weights stay where they are, nothing is copied, and saved files do not change. A layer uses the operators for
    bfloat16 and float16 on CUDA (by its weights or by autocast), `hidden_act` `"gelu"` or `"gelu_pytorch_tanh"`, without
    dropout, and only while its modules are those it was built with, without hooks, adapters or quantization; for tokens
    up to 256 patches, for channels where `hidden_size` and `channel_mlp_dim` are multiples of 8 and the device is of
    compute capability 9.0 (Hopper) or higher. Otherwise it computes as before, also under the transforms of `torch.func`
    and in forward-mode differentiation. Works in inference and in training, under `torch.compile`, `torch.export` and
    with gradient checkpointing. Gradients of gradients (`create_graph=True`) need `enabled=False`.

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
    # By name: a model from remote code has a class of its own, and FSDP2 makes another one of that
    layers: dict[Any, type[nn.Module]] = {
        module: layer_class
        for module in model.modules()
        for layer_class in type(module).__mro__
        if layer_class.__name__ == MixerLayer.__name__
    }
    if not layers:
        raise ValueError(f"`{type(model).__name__}` holds no Mixer layers.")
    if enabled and not is_triton_available():
        raise ImportError("The kernels need Triton: `pip install triton` (Linux, GPU).")
    for layer, layer_class in layers.items():
        attach_kernels(layer_class, by_default=False)
        layer.uses_kernels = enabled
    return model


def takes_part(choice: bool | None, axis: str, layer: Any, hidden_states: torch.Tensor) -> bool:
    """Whether the fused operator is used, with the `choice` of [`use_kernels`]."""
    if choice is False or (choice is None and (not is_on_gpu(hidden_states) or torch.compiler.is_exporting())):
        return False
    if not applies(axis, layer, hidden_states):
        return False
    from .selection import measure_layer

    return choice is True or measure_layer(axis, layer, hidden_states)


def is_on_gpu(hidden_states: torch.Tensor) -> bool:
    return hidden_states.is_cuda


def mix(axis: str, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what the layer's own code does, with the fused operator, which has to apply."""
    norm, mlp = norm_and_mlp(axis, layer)
    dtype = operand_dtype(mlp, hidden_states)
    scale = None
    if layer.drop_path.training and layer.drop_path.drop_prob > 0:
        scale = layer.drop_path(torch.ones(hidden_states.shape[0], 1, 1, device=hidden_states.device)).flatten()
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


def is_as_built(axis: str, layer: Any) -> bool:
    """Whether the modules of a layer are those of a `MixerLayer` with GELU, and nothing was attached to them."""
    # Asked before each call, and `module.name` takes ten times as long
    modules = layer._modules
    norm, mlp, drop_path = modules[f"{axis}_norm"], modules[f"{axis}_mixing"], modules["drop_path"]
    # By name: remote code has classes of its own
    if (
        type(mlp).__name__ != {"token": "MixerTokenMLP", "channel": "MixerMLP"}[axis]
        or type(drop_path).__name__ != "MixerDropPath"
    ):
        return False
    modules = mlp._modules
    fc1, fc2, dropout, activation_fn = (modules[name] for name in ("fc1", "fc2", "dropout", "activation_fn"))
    return (
        type(dropout) is nn.Dropout
        and type(activation_fn) in GELU_APPROXIMATIONS
        and all(is_untouched(module) for module in (mlp, dropout, activation_fn, drop_path))
        and is_plain(norm, nn.LayerNorm)
        and is_plain(fc1, nn.Linear)
        and is_plain(fc2, nn.Linear)
    )


def applies(axis: str, layer: Any, hidden_states: torch.Tensor) -> bool:
    """Whether the fused operator computes what the layer would, on this device and in this type."""
    from . import channel_mixing, token_mixing
    from .launching import DTYPES, INTERPRETED

    if not (hidden_states.is_cuda or INTERPRETED) or not is_as_built(axis, layer) or is_transformed():
        return False
    norm, mlp = norm_and_mlp(axis, layer)
    dtype = operand_dtype(mlp, hidden_states)
    batch_size, num_patches, hidden_size = hidden_states.shape
    return (
        batch_size > 0
        and dtype in DTYPES
        and (mlp.dropout.p == 0 or not mlp.dropout.training)
        # Otherwise the layer's own code has the error message
        and norm.normalized_shape == (hidden_size,)
        and mlp.fc1.in_features == mlp.fc2.out_features == {"token": num_patches, "channel": hidden_size}[axis]
        and mlp.fc1.out_features == mlp.fc2.in_features
        and {"token": token_mixing.fits, "channel": channel_mixing.fits}[axis](
            hidden_states, mlp.fc1.out_features, dtype
        )
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation goes on, for which the operators have no rule."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


__all__ = ["use_kernels"]
