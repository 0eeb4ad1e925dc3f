# SPDX-License-Identifier: Apache-2.0
"""What the kernels of every device need from a layer and its tokens."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from transformers.utils import logging

from ..layers_mixer import GELU_APPROXIMATIONS, MixerLayer, is_plain, is_untouched


logger = logging.get_logger(__name__)


def mixer_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that a model holds, by name. A model from remote code has a class of its own for them."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(parent.__name__ == MixerLayer.__name__ for parent in type(module).__mro__)
    }


# Under `torch.compile` it warns while the graph is captured, which a plain call would break
@torch.compiler.assume_constant_result
def warn_once(reason: str) -> None:
    logger.warning_once(f"A layer is computed without the kernels: it {reason}.")


def parts_of(layer: Any) -> dict[str, tuple[nn.Module, type[nn.Module]]]:
    """Return the modules whose weights the kernels read, by name, and what they have to be."""
    token_mlp, channel_mlp = layer.token_mixing, layer.channel_mixing
    return {
        "token_norm": (layer.token_norm, nn.LayerNorm),
        "token_mixing.fc1": (token_mlp.fc1, nn.Linear),
        "token_mixing.fc2": (token_mlp.fc2, nn.Linear),
        "channel_norm": (layer.channel_norm, nn.LayerNorm),
        "channel_mixing.fc1": (channel_mlp.fc1, nn.Linear),
        "channel_mixing.fc2": (channel_mlp.fc2, nn.Linear),
    }


def weights_of(layer: Any) -> list[Any]:
    """Return the weights of a layer, in the order of `parts_of`."""
    return [module.weight for module, _ in parts_of(layer).values()]


def unsuitable_structure(layer: Any) -> str | None:
    """Say why no kernels suit a layer, or return `None` where some may."""
    if not hasattr(layer, "kernel"):
        return "comes from code without kernels: save the model again with this version of hf_mixer"
    mlps = (layer.token_mixing, layer.channel_mixing)
    # By name: remote code has classes of its own
    names = [type(module).__name__ for module in (*mlps, layer.drop_path)]
    if names != ["MixerTokenMLP", "MixerMLP", "MixerDropPath"]:
        return "holds other modules than a `MixerLayer`"
    for name, (module, expected) in parts_of(layer).items():
        if not is_plain(module, expected):
            return (
                f"has a `{name}` with hooks, an adapter, or quantized, sharded or replaced weights, expected a plain "
                f"`nn.{expected.__name__}`: remove them, or go without the kernels"
            )
    for mlp in mlps:
        if type(mlp.activation_fn) not in GELU_APPROXIMATIONS:
            return f"has the activation {type(mlp.activation_fn).__name__}, expected `gelu` or `gelu_pytorch_tanh`"
        if type(mlp.dropout) is not nn.Dropout or not all(
            is_untouched(module) for module in (mlp, mlp.dropout, mlp.activation_fn)
        ):
            return "has hooks, replaced modules, or a `forward` set by another library, within its mixing: remove them"
    return None


def unsuitable_sizes(layer: Any, multiple: int) -> str | None:
    """Say that the sizes of a layer do not fit each other or `multiple`, or return `None` where they do."""
    hidden_size, token_mlp_dim = layer.token_norm.weight.shape[0], layer.token_mixing.fc1.out_features
    sizes = (hidden_size, token_mlp_dim, layer.channel_mixing.fc1.out_features)
    shapes = {name: tuple(weight.shape) for name, weight in zip(parts_of(layer), weights_of(layer))}
    # The kernels read as much of each weight as the others say
    if (
        shapes["token_mixing.fc1"] != shapes["token_mixing.fc2"][::-1]
        or shapes["channel_mixing.fc1"] != shapes["channel_mixing.fc2"][::-1]
        or not shapes["token_norm"] == shapes["channel_norm"] == shapes["channel_mixing.fc1"][1:]
    ):
        return f"has weights that do not fit each other, of shapes {shapes}"
    if any(size % multiple for size in sizes):
        return (
            f"has hidden_size, token_mlp_dim and channel_mlp_dim of {', '.join(map(str, sizes))}, expected multiples of "
            f"{multiple}"
        )
    return None


def unsuitable_types(layer: Any, expected: Iterable[torch.dtype]) -> str | None:
    """Say that the weights of a layer are not of one of some types, or return `None` where they are."""
    dtypes = {weight.dtype for weight in weights_of(layer)}
    if len(dtypes) > 1 or not dtypes.issubset(expected):
        return f"has weights of type {', '.join(map(str, dtypes))}, expected one of {', '.join(map(str, expected))}"
    return None


def unsuitable_call(layer: Any, hidden_states: torch.Tensor) -> str | None:
    """Say why no kernels can compute now, or return `None` where some may."""
    if hidden_states.shape[0] == 0:
        return "has an empty batch"
    if torch.compiler.is_dynamo_compiling():
        return None  # Dynamo of torch 2.11 says of everything that it is exported
    if torch.compiler.is_exporting():
        return "is exported, also for machines without the kernels"
    # Neither the transforms of `torch.func` nor forward-mode differentiation have a rule for the operators
    for tensor in (hidden_states, *layer.parameters()):
        if torch.func.debug_unwrap(tensor) is not tensor or forward_ad.unpack_dual(tensor).tangent is not None:
            return "is within a transform of `torch.func` or in forward-mode differentiation"
    return None
