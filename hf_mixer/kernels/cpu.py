# SPDX-License-Identifier: Apache-2.0
"""A layer on a processor with matrix units for bfloat16 (AMX), in inference and in training, with code in C++."""

from typing import Any

import torch
from torch import nn

from ..layers_mixer import GELU_APPROXIMATIONS, is_untouched, operand_dtype
from .cpu_library import cpu_library
from .cpu_operators import MULTIPLE, CpuLayer, cpu_layer, pack_matrices
from .suitability import (
    logger,
    mixer_layers,
    parts_of,
    unsuitable_call,
    unsuitable_sizes,
    unsuitable_structure,
    unsuitable_types,
    warn_once,
)


DTYPES = (torch.bfloat16, torch.float32)


@torch.compiler.assume_constant_result
def has_matrix_units() -> bool:
    """Whether this processor has what the kernels are made for."""
    return torch.cpu.get_capabilities().get("amx_bf16", False)


@torch.compiler.assume_constant_result
def num_threads() -> int:
    """Return the threads of torch, which Dynamo cannot ask for."""
    return torch.get_num_threads()


def require() -> None:
    """Compile the kernels where the processor suits them. Raise `ImportError` where that is not possible."""
    if has_matrix_units() and not cpu_library().hf_mixer_matrix_units():
        raise ImportError("The C++ compiler knows no AMX, which the kernels need: install g++ 11 or newer")


def use_where_possible(model: nn.Module) -> bool:
    """
    Let the layers of a model compute with the kernels where this processor has matrix units and they suit. Whether they do is
    returned. Where the kernels cannot be compiled, a warning says why.
    """
    layers = mixer_layers(model)
    if not has_matrix_units() or next(model.parameters()).device.type != "cpu":
        return False
    reason = next(filter(None, map(unsupported_layer_reason, layers.values())), None)
    if reason is not None:
        logger.info(f"The layers compute without the kernels for processors: one {reason}.")
        return False
    try:
        require()
    except (ImportError, OSError) as error:
        logger.warning_once(f"The layers compute without the kernels for processors. {error}")
        return False
    for layer in layers.values():
        layer.kernel = compute_layer
    logger.info("The layers take the kernels for processors with matrix units.")
    return True


def parameters_of(layer: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the matrices and the vectors of a layer, in the order of the operators."""
    parts: dict[str, Any] = {name: module for name, (module, _) in parts_of(layer).items()}
    norms = [parts.pop("token_norm"), parts.pop("channel_norm")]
    vectors = [each for norm in norms for each in (norm.weight, norm.bias)]
    linears = list(parts.values())
    return [linear.weight for linear in linears], [*vectors, *(linear.bias for linear in linears)]


def settings_of(layer: Any) -> tuple[float, bool]:
    """Return the epsilon of LayerNorm, and whether GELU is the approximation by tanh."""
    return layer.token_norm.eps, GELU_APPROXIMATIONS[type(layer.token_mixing.activation_fn)] == "tanh"


def branch_scales(layer: Any, batch_size: int) -> torch.Tensor | None:
    """Return what multiplies the residual branches in training, `(2, batch_size)`, drawn as the layer does it."""
    if not layer.drop_path.training or layer.drop_path.drop_prob == 0:
        return None
    ones = torch.ones(batch_size, 1, 1)
    return torch.stack([layer.drop_path(ones).flatten(), layer.drop_path(ones).flatten()])


def compute_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return what a layer computes, or `None` where it has to do it itself, with a warning."""
    reason = unsupported_layer_reason(layer) or unsupported_batch_reason(layer, hidden_states)
    if reason is not None:
        warn_once(reason)
        return None
    matrices, vectors = parameters_of(layer)
    scales = branch_scales(layer, hidden_states.shape[0])
    return CpuLayer.apply(hidden_states, scales, *settings_of(layer), *matrices, *vectors)


class PackedLayer:
    """A layer whose weights no longer change, in evaluation mode."""

    def __init__(self, layer: Any):
        matrices, vectors = parameters_of(layer)
        self.packed = pack_matrices([matrix.detach() for matrix in matrices])
        self.vectors = [vector.detach().float() for vector in vectors]
        self.epsilon, self.tanh = settings_of(layer)

    def __call__(self, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return cpu_layer(hidden_states, self.packed, self.vectors, None, self.epsilon, self.tanh)


def unsupported_layer_reason(layer: Any) -> str | None:
    """Say why the kernels do not suit a layer, whatever its tokens are, or return `None` where they do."""
    reason = unsuitable_structure(layer)
    if reason is not None:
        return reason
    if not is_untouched(layer.drop_path):
        return "has hooks, or a `forward` set by another library, at its `drop_path`: remove them"
    if layer.token_norm.eps != layer.channel_norm.eps or type(layer.token_mixing.activation_fn) is not type(
        layer.channel_mixing.activation_fn
    ):
        return "mixes tokens and channels with different settings"
    if layer.token_norm.weight.device.type != "cpu":
        return f"is on {layer.token_norm.weight.device}, where `use_kernels` was called for a processor: call it again"
    if not has_matrix_units():
        return "is on a processor without matrix units for bfloat16 (AMX)"
    return unsuitable_types(layer, DTYPES) or unsuitable_sizes(layer, MULTIPLE)


def unsupported_batch_reason(layer: Any, hidden_states: torch.Tensor) -> str | None:
    """Say why the kernels cannot take these tokens, or return `None` where they can."""
    if any(mlp.dropout.training and mlp.dropout.p > 0 for mlp in (layer.token_mixing, layer.channel_mixing)):
        return "has dropout, which the kernels do not have: set `hidden_dropout_prob` to 0"
    if {hidden_states.dtype, operand_dtype(hidden_states)} != {torch.bfloat16}:
        return "computes in another type than bfloat16: load the model in bfloat16, or compute under autocast"
    reason = unsuitable_call(layer, hidden_states)
    if reason is None and hidden_states.shape[0] < num_threads():
        reason = (
            f"has fewer images in a batch than the {num_threads()} threads, of which each computes one: take larger batches, "
            "or `torch.set_num_threads`"
        )
    return reason
