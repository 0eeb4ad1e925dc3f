# SPDX-License-Identifier: Apache-2.0
"""
LayerNorm, token-mixing MLP and residual connection in one operator, written in Triton.

The tokens are read twice, for the mean and variance of each and for everything else, and written once; the hidden
units never leave the chip. Training keeps the input, the means and the deviations, and computes the rest again.

The operators are `torch.ops.hf_mixer.token_mixing` and `torch.ops.hf_mixer.token_mixing_backward`. Their weights may
be of a narrower type than the tokens, as under autocast: matrix products have operands of that type and sums in
float32.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from transformers.utils import logging

from .gelu import gelu_gate, gelu_gate_slope
from .launching import INTERPRETED, launching_on
from .normalization import normalization_backward, normalization_statistics


logger = logging.get_logger(__name__)

# A program holds all tokens of some channels at once; with more, it runs out of registers
MAX_PATCHES = 256


def autotune(*blocks: tuple[int, int, int, int]):
    """
    Let Triton find the fastest of some (channels, hidden units, warps, stages) when a size is first seen, and keep
    that on the disk. Those that need more shared memory than the device has drop out. Triton's interpreter gets one,
    since it cannot time them.
    """
    configs = [
        triton.Config({"BLOCK_C": channels, "BLOCK_D": units}, num_warps=warps, num_stages=stages)
        for channels, units, warps, stages in ([(16, 32, 4, 1)] if INTERPRETED else blocks)
    ]
    return triton.autotune(configs, key=["num_patches", "num_channels", "num_hidden"], cache_results=True)


@triton.jit
def _image_and_channels(num_channels, BLOCK_C: tl.constexpr):
    """What a program computes. In one axis, since the others of a grid end at 65,535."""
    blocks = tl.cdiv(num_channels, BLOCK_C)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    return image, tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _normalize(
    x, mean_pointer, rstd_pointer, gamma_pointer, beta_pointer, tokens, channels, num_patches, num_channels
):
    mean = tl.load(mean_pointer + tokens, mask=tokens < num_patches, other=0.0)
    rstd = tl.load(rstd_pointer + tokens, mask=tokens < num_patches, other=0.0)
    gamma = tl.load(gamma_pointer + channels, mask=channels < num_channels, other=0.0).to(mean.dtype)
    beta = tl.load(beta_pointer + channels, mask=channels < num_channels, other=0.0).to(mean.dtype)
    return (x.to(mean.dtype) - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]


# Pointers, and the layout of what they point to:
#   x, output, normalized, gradients of them    (batch_size, num_patches, num_channels)
#   mean, rstd                                  (batch_size, num_patches)
#   fc1, fc2                                    (padded_hidden, BLOCK_S): the second transposed, both filled with zeros
#   bias1, bias2                                (padded_hidden,), (num_patches,)
#   scale                                       (batch_size,): the factors of stochastic depth
#   hidden, hidden_gradient                     (batch_size, num_channels, num_hidden)
#
# The products have the channels in their rows, so that the hidden units of a channel stay in the registers of one
# thread group between the first and the second product, as the scores do in FlashAttention.
@autotune((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2))
@triton.jit
def _token_mixing_forward(
    x_pointer,
    mean_pointer,
    rstd_pointer,
    gamma_pointer,
    beta_pointer,
    fc1_pointer,
    bias1_pointer,
    fc2_pointer,
    bias2_pointer,
    scale_pointer,
    output_pointer,
    num_patches,
    num_channels,
    num_hidden,
    TANH: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image, channels = _image_and_channels(num_channels, BLOCK_C)
    tokens = tl.arange(0, BLOCK_S)
    inside = (tokens < num_patches)[:, None] & (channels < num_channels)[None, :]
    # The image goes into the pointer, so that the offsets within it have 32 bits
    start = image * num_patches * num_channels
    offsets = tokens[:, None] * num_channels + channels[None, :]
    x = tl.load(x_pointer + start + offsets, mask=inside, other=0.0)
    dtype = fc1_pointer.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    mean_pointer += image * num_patches
    rstd_pointer += image * num_patches
    normalized = _normalize(
        x, mean_pointer, rstd_pointer, gamma_pointer, beta_pointer, tokens, channels, num_patches, num_channels
    )
    normalized = tl.trans(normalized.to(dtype))

    mixed = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for first in range(0, num_hidden, BLOCK_D):
        units = first + tl.arange(0, BLOCK_D)
        fc1 = tl.load(fc1_pointer + units[:, None] * BLOCK_S + tokens[None, :])
        bias1 = tl.load(bias1_pointer + units).to(tl.float32)
        hidden = tl.dot(normalized, tl.trans(fc1), input_precision="ieee", out_dtype=tl.float32) + bias1[None, :]
        hidden = (hidden * gelu_gate(hidden, TANH, EXACT)).to(dtype)
        fc2 = tl.load(fc2_pointer + units[:, None] * BLOCK_S + tokens[None, :])
        mixed = tl.dot(hidden, fc2, mixed, input_precision="ieee", out_dtype=tl.float32)
    mixed += tl.load(bias2_pointer + tokens, mask=tokens < num_patches, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        mixed *= tl.load(scale_pointer + image).to(tl.float32)
    # Read again: kept until here, it would take the registers that the sum needs
    x = tl.load(x_pointer + start + offsets, mask=inside, other=0.0)
    # Rounded as the output of the layer's own second product is, which halves what is transposed
    output = tl.trans(mixed.to(dtype)).to(tl.float32) + x.to(tl.float32)
    tl.store(output_pointer + start + offsets, output.to(x.dtype), mask=inside)


@autotune((128, 64, 8, 1), (128, 32, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2))
@triton.jit
def _token_mixing_backward(
    x_pointer,
    mean_pointer,
    rstd_pointer,
    gamma_pointer,
    beta_pointer,
    fc1_pointer,
    bias1_pointer,
    fc2_pointer,
    output_gradient_pointer,
    normalized_pointer,
    normalized_gradient_pointer,
    hidden_pointer,
    hidden_gradient_pointer,
    num_patches,
    num_channels,
    num_hidden,
    TANH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image, channels = _image_and_channels(num_channels, BLOCK_C)
    tokens = tl.arange(0, BLOCK_S)
    inside = (tokens < num_patches)[:, None] & (channels < num_channels)[None, :]
    start = image * num_patches * num_channels
    offsets = tokens[:, None] * num_channels + channels[None, :]
    x = tl.load(x_pointer + start + offsets, mask=inside, other=0.0)
    dtype = fc1_pointer.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    mean_pointer += image * num_patches
    rstd_pointer += image * num_patches
    normalized = _normalize(
        x, mean_pointer, rstd_pointer, gamma_pointer, beta_pointer, tokens, channels, num_patches, num_channels
    ).to(dtype)
    tl.store(normalized_pointer + start + offsets, normalized, mask=inside)
    normalized = tl.trans(normalized)
    output_gradient = tl.load(output_gradient_pointer + start + offsets, mask=inside, other=0.0)
    output_gradient = tl.trans(output_gradient.to(dtype))

    hidden_pointer += image * num_channels * num_hidden
    hidden_gradient_pointer += image * num_channels * num_hidden
    normalized_gradient = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for first in range(0, num_hidden, BLOCK_D):
        units = first + tl.arange(0, BLOCK_D)
        fc1 = tl.load(fc1_pointer + units[:, None] * BLOCK_S + tokens[None, :])
        bias1 = tl.load(bias1_pointer + units).to(tl.float32)
        before = tl.dot(normalized, tl.trans(fc1), input_precision="ieee", out_dtype=tl.float32) + bias1[None, :]
        fc2 = tl.load(fc2_pointer + units[:, None] * BLOCK_S + tokens[None, :])
        gradient = tl.dot(output_gradient, tl.trans(fc2), input_precision="ieee", out_dtype=tl.float32)
        gate = gelu_gate(before, TANH, EXACT)
        gradient = (gradient * (gate + before * gelu_gate_slope(before, gate, TANH, EXACT))).to(dtype)
        normalized_gradient = tl.dot(gradient, fc1, normalized_gradient, input_precision="ieee", out_dtype=tl.float32)

        hidden_offsets = channels[:, None] * num_hidden + units[None, :]
        has_hidden = (channels < num_channels)[:, None] & (units < num_hidden)[None, :]
        tl.store(hidden_pointer + hidden_offsets, (before * gate).to(dtype), mask=has_hidden)
        tl.store(hidden_gradient_pointer + hidden_offsets, gradient, mask=has_hidden)
    normalized_gradient = tl.trans(normalized_gradient.to(x.dtype))
    tl.store(normalized_gradient_pointer + start + offsets, normalized_gradient, mask=inside)


def _grid(x: torch.Tensor):
    return lambda meta: (triton.cdiv(x.shape[2], meta["BLOCK_C"]) * x.shape[0],)


def _contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The kernels read vectors element after element, and the tokens row after row."""
    return [tensor.contiguous() for tensor in tensors]


def _pad(fc1_weight: torch.Tensor, fc1_bias: torch.Tensor, fc2_weight: torch.Tensor) -> list[torch.Tensor]:
    """
    Return the kernels' `fc1`, `bias1` and `fc2`, filled up with zeros: the patches to a power of two, at least the 16
    that a matrix product of Triton needs, and the hidden units to a multiple of 64. Then all rows start at aligned
    addresses, and no load needs a mask.
    """
    num_hidden, num_patches = fc1_weight.shape
    patches = (0, max(16, triton.next_power_of_2(num_patches)) - num_patches)
    units = (0, -num_hidden % 64)
    padded = (
        nn.functional.pad(fc1_weight, (*patches, *units)),
        nn.functional.pad(fc1_bias, units),
        nn.functional.pad(fc2_weight.t(), (*patches, *units)),
    )
    return _contiguous(*padded)


def _check_shapes(x: torch.Tensor, *weights: torch.Tensor) -> None:
    """The kernels would read past the end of smaller ones."""
    _, num_patches, num_channels = x.shape
    num_hidden = len(weights[2])
    norm = [(num_channels,), (num_channels,)]
    expected = [*norm, (num_hidden, num_patches), (num_hidden,), (num_patches, num_hidden), (num_patches,)]
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != expected:
        raise ValueError(f"tokens of shape {tuple(x.shape)} need weights of shapes {expected}, got {shapes}")


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_shapes(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    x, norm_weight, norm_bias, fc2_bias = _contiguous(x, norm_weight, norm_bias, fc2_bias)
    fc1, bias1, fc2 = _pad(fc1_weight, fc1_bias, fc2_weight)
    mean, rstd = normalization_statistics(x, eps)
    output = torch.empty_like(x)
    with launching_on(x):
        _token_mixing_forward[_grid(x)](
            *(x, mean, rstd, norm_weight, norm_bias, fc1, bias1, fc2, fc2_bias, scale, output),
            *(*x.shape[1:], len(fc1_weight)),
            TANH=tanh,
            HAS_SCALE=scale is not None,
            BLOCK_S=fc1.shape[1],
        )
    return output, mean, rstd


def _backward(
    output_gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    scale: torch.Tensor | None,
    tanh: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, norm_weight, norm_bias = _contiguous(x, norm_weight, norm_bias)
    batch_size, _, num_channels = x.shape
    num_hidden = fc1_weight.shape[0]
    branch_gradient = output_gradient if scale is None else output_gradient * scale.view(-1, 1, 1)
    branch_gradient = branch_gradient.to(fc1_weight.dtype).contiguous()
    fc1, bias1, fc2 = _pad(fc1_weight, fc1_bias, fc2_weight)
    normalized = torch.empty(x.shape, device=x.device, dtype=fc1_weight.dtype)
    normalized_gradient = torch.empty_like(x)
    hidden, hidden_gradient = (
        torch.empty(batch_size, num_channels, num_hidden, device=x.device, dtype=fc1_weight.dtype) for _ in range(2)
    )
    with launching_on(x):
        _token_mixing_backward[_grid(x)](
            *(x, mean, rstd, norm_weight, norm_bias, fc1, bias1, fc2, branch_gradient),
            *(normalized, normalized_gradient, hidden, hidden_gradient),
            *(*x.shape[1:], num_hidden),
            TANH=tanh,
            BLOCK_S=fc1.shape[1],
        )
    x_gradient, norm_weight_gradient, norm_bias_gradient = normalization_backward(
        normalized_gradient, x, mean, rstd, norm_weight, norm_bias
    )
    return (
        x_gradient + output_gradient,
        norm_weight_gradient,
        norm_bias_gradient,
        torch.bmm(normalized, hidden_gradient).sum(0).t().contiguous(),
        hidden_gradient.sum((0, 1)).to(fc1_bias.dtype),
        torch.bmm(branch_gradient, hidden).sum(0),
        branch_gradient.sum((0, 2)),
    )


def _fake_forward(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, scale, eps, tanh):
    statistics = [torch.empty(x.shape[:2], device=x.device, dtype=torch.float32) for _ in range(2)]
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), *statistics


def _fake_backward(
    output_gradient, x, mean, rstd, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, scale, tanh
):
    fc2_bias = torch.empty(fc2_weight.shape[:1], device=x.device, dtype=fc2_weight.dtype)
    like = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return tuple(torch.empty(tensor.shape, device=x.device, dtype=tensor.dtype) for tensor in like)


def _save_for_backward(ctx, inputs, output):
    *tensors, scale, ctx.eps, ctx.tanh = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(mean, rstd, scale, *tensors)


def _call_backward(ctx, output_gradient, *_):
    mean, rstd, scale, *tensors = ctx.saved_tensors
    if torch.is_grad_enabled():
        # `create_graph=True`: the gradients need gradients themselves
        logger.warning_once("Token mixing has its gradients of gradients from torch, not from the kernels.")
        _, pull_back = torch.func.vjp(lambda *tensors: _formula(*tensors, scale, ctx.eps, ctx.tanh), *tensors)
        gradients = pull_back(output_gradient)
    else:
        gradients = torch.ops.hf_mixer.token_mixing_backward(
            output_gradient, tensors[0], mean, rstd, *tensors[1:-1], scale, ctx.tanh
        )
    return *gradients, None, None, None


def _formula(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, scale, eps, tanh):
    """What the operator computes, in torch."""
    common = torch.promote_types(x.dtype, norm_weight.dtype)
    normalized = nn.functional.layer_norm(
        x.to(common), norm_weight.shape, norm_weight.to(common), norm_bias.to(common), eps
    ).to(fc1_weight.dtype)
    hidden = nn.functional.gelu(
        fc1_weight @ normalized + fc1_bias.unsqueeze(-1), approximate="tanh" if tanh else "none"
    )
    mixed = fc2_weight @ hidden + fc2_bias.unsqueeze(-1)
    if scale is not None:
        mixed = mixed * scale.view(-1, 1, 1)
    return (x + mixed).to(x.dtype)


# A second copy of this module finds the operators of the first; to register them again would take them away from it
if not hasattr(torch.ops.hf_mixer, "token_mixing"):
    torch.library.custom_op("hf_mixer::token_mixing_backward", _backward, mutates_args=()).register_fake(
        _fake_backward
    )
    _operator = torch.library.custom_op("hf_mixer::token_mixing", _forward, mutates_args=())
    _operator.register_fake(_fake_forward)
    _operator.register_autograd(_call_backward, setup_context=_save_for_backward)
