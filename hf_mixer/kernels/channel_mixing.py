# SPDX-License-Identifier: Apache-2.0
"""
LayerNorm, channel-mixing MLP and residual connection in one operator, written in Triton.

Biases, GELU and its derivative, stochastic depth and the residual connection are computed on the tiles of the matrix
products before they are stored, so that the hidden units are written once and read once. In inference on many tokens
LayerNorm needs no pass of its own either: its weight goes into the first matrix, its mean and deviation are taken out of
the product. Training keeps the hidden units before GELU, not after it, and computes the rest again.

The operators are `torch.ops.hf_mixer.channel_mixing` and `torch.ops.hf_mixer.channel_mixing_backward`. Their weights may
be of a narrower type than the tokens, as under autocast: matrix products have operands of that type and sums in float32.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from .launching import contiguous, launching_on, register_operator
from .normalization import normalization_backward, normalization_statistics, normalize
from .products import ALIGNMENT, hidden_gradients, hidden_units, lay, residual_sum


# LayerNorm goes into the first matrix where there are so many tokens for each hidden unit: it saves writing the
# normalized tokens and costs writing that matrix and another launch
FOLDING_TOKENS = 4


def fits(hidden_states: torch.Tensor, mlp_dim: int, dtype: torch.dtype) -> bool:
    """Whether the operator takes these tokens on their device, with so many hidden units of this type."""
    sizes = (hidden_states.shape[-1], mlp_dim)
    return all(size * dtype.itemsize % ALIGNMENT == 0 for size in sizes) and moves_tiles(str(hidden_states.device))


# In a graph that is being captured, the answer is a constant
@torch.compiler.assume_constant_result
def moves_tiles(device: str) -> bool:
    """Whether a device loads and stores tiles by itself, as from Hopper on. Without that, the kernels are slow."""
    target = torch.device(device)
    return target.type != "cuda" or torch.cuda.get_device_capability(target) >= (9, 0)


# A row of the matrix, (num_hidden, num_channels), for each program
@triton.jit
def _fold_norm(
    matrix_pointer,
    bias_pointer,
    norm_weight_pointer,
    norm_bias_pointer,
    folded_pointer,
    folded_bias_pointer,
    sums_pointer,
    num_channels,
    BLOCK_C: tl.constexpr,
):
    unit = tl.program_id(0)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < num_channels
    matrix = tl.load(matrix_pointer + unit * num_channels + channels, mask=inside, other=0.0).to(tl.float32)
    norm_weight = tl.load(norm_weight_pointer + channels, mask=inside, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_pointer + channels, mask=inside, other=0.0).to(tl.float32)
    folded = (matrix * norm_weight).to(folded_pointer.dtype.element_ty)
    tl.store(folded_pointer + unit * num_channels + channels, folded, mask=inside)
    # Of the rounded values: then the mean goes out of the product exactly
    tl.store(sums_pointer + unit, tl.sum(folded.to(tl.float32), axis=0))
    bias = tl.load(bias_pointer + unit).to(tl.float32)
    tl.store(folded_bias_pointer + unit, bias + tl.sum(matrix * norm_bias, axis=0))


def fold_norm(
    matrix: torch.Tensor, bias: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Put weight and bias of a LayerNorm into the linear layer that follows it, of shapes `(num_hidden, num_channels)` and
    `(num_hidden,)`. Return its matrix, its bias and the sums of the matrix over the channels, the latter two in float32.
    """
    folded = torch.empty(matrix.shape, device=matrix.device, dtype=matrix.dtype)
    folded_bias, sums = (torch.empty(matrix.shape[0], device=matrix.device, dtype=torch.float32) for _ in range(2))
    with launching_on(matrix):
        _fold_norm[(matrix.shape[0],)](
            *(matrix, bias, norm_weight, norm_bias, folded, folded_bias, sums, matrix.shape[1]),
            BLOCK_C=triton.next_power_of_2(matrix.shape[1]),
        )
    return folded, folded_bias, sums


def _forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    scale: torch.Tensor | None,
    eps: float,
    tanh: bool,
    keep_hidden: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, fc1, fc2 = lay(x), lay(fc1_weight), lay(fc2_weight)
    norm_weight, norm_bias, fc1_bias, fc2_bias = contiguous(norm_weight, norm_bias, fc1_bias, fc2_bias)
    is_worth_folding = x.shape[0] * x.shape[1] >= FOLDING_TOKENS * len(fc1)
    if is_worth_folding and x.dtype == fc1.dtype and not keep_hidden:
        mean, rstd = normalization_statistics(x, eps)
        folded, bias, sums = fold_norm(fc1, fc1_bias, norm_weight, norm_bias)
        hidden, before = hidden_units(x.flatten(0, 1), folded, bias, tanh, False, (mean, rstd, sums))
    else:
        normalized, mean, rstd = normalize(x, norm_weight, norm_bias, eps, fc1.dtype)
        hidden, before = hidden_units(normalized.flatten(0, 1), fc1, fc1_bias, tanh, keep_hidden)
    output = residual_sum(hidden, fc2, fc2_bias, scale, x)
    return output, mean, rstd, hidden.new_empty(0) if before is None else before


def _backward(
    output_gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    before: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    scale: torch.Tensor | None,
    eps: float,
    tanh: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, fc2 = lay(x), lay(fc2_weight)
    norm_weight, norm_bias = contiguous(norm_weight, norm_bias)
    branch_gradient = output_gradient if scale is None else output_gradient * scale.view(-1, 1, 1)
    branch_gradient = lay(branch_gradient.to(fc2.dtype)).flatten(0, 1)
    normalized = normalize(x, norm_weight, norm_bias, eps, fc2.dtype)[0].flatten(0, 1)
    if before.numel() == 0:  # not kept
        before = nn.functional.linear(normalized, fc1_weight, fc1_bias)
    hidden, hidden_gradient, fc1_bias_gradient = hidden_gradients(branch_gradient, fc2, before, tanh)
    normalized_gradient = torch.mm(hidden_gradient, fc1_weight).view(x.shape)
    x_gradient, norm_weight_gradient, norm_bias_gradient = normalization_backward(
        normalized_gradient, x, mean, rstd, norm_weight, norm_bias
    )
    return (
        x_gradient + output_gradient,
        norm_weight_gradient,
        norm_bias_gradient,
        torch.mm(hidden_gradient.t(), normalized),
        fc1_bias_gradient.to(fc1_bias.dtype),
        torch.mm(branch_gradient.t(), hidden),
        branch_gradient.sum(0),
    )


def _fake_forward(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, scale, eps, tanh, keep_hidden
):
    statistics = [torch.empty(x.shape[:2], device=x.device, dtype=torch.float32) for _ in range(2)]
    shape = (x.shape[0] * x.shape[1], fc1_weight.shape[0]) if keep_hidden else (0,)
    before = torch.empty(shape, device=x.device, dtype=fc1_weight.dtype)
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), *statistics, before


def _fake_backward(
    output_gradient,
    x,
    mean,
    rstd,
    before,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    scale,
    eps,
    tanh,
):
    fc2_bias = torch.empty(fc2_weight.shape[:1], device=x.device, dtype=fc2_weight.dtype)
    like = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return tuple(torch.empty(tensor.shape, device=x.device, dtype=tensor.dtype) for tensor in like)


def _save_for_backward(ctx, inputs, output):
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, _, scale, eps, tanh, _ = inputs
    _, mean, rstd, before = output
    ctx.mark_non_differentiable(mean, rstd, before)
    ctx.save_for_backward(x, mean, rstd, before, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, scale)
    ctx.eps, ctx.tanh = eps, tanh


def _call_backward(ctx, output_gradient, *_):
    gradients = torch.ops.hf_mixer.channel_mixing_backward(output_gradient, *ctx.saved_tensors, ctx.eps, ctx.tanh)
    return *gradients, None, None, None, None


register_operator(
    "channel_mixing", _forward, _backward, _fake_forward, _fake_backward, _save_for_backward, _call_backward
)
