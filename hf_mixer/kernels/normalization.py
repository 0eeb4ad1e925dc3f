# SPDX-License-Identifier: Apache-2.0
"""LayerNorm in two parts: a kernel in Triton for means and deviations, and torch's own backward pass."""

import torch
import triton
import triton.language as tl

from .launching import launching_on


# A row of x, (rows, num_channels), for each program; the mean and the reciprocal of the deviation have shape (rows,).
@triton.jit
def _statistics(x_pointer, mean_pointer, rstd_pointer, num_channels, epsilon, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < num_channels
    x = tl.load(x_pointer + row * num_channels + channels, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / num_channels
    centered = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / num_channels + epsilon)
    tl.store(mean_pointer + row, mean)
    tl.store(rstd_pointer + row, rstd)


def normalization_statistics(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and reciprocal deviations over the last axis of `x`, which is contiguous, in float32."""
    mean, rstd = (torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32) for _ in range(2))
    block = triton.next_power_of_2(x.shape[-1])
    # One warp adds up a row without waiting for others, as far as its registers go
    num_warps = max(1, min(block // 1024, 16))
    with launching_on(x):
        _statistics[(mean.numel(),)](x, mean, rstd, x.shape[-1], eps, BLOCK_C=block, num_warps=num_warps)
    return mean, rstd


def normalization_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `x`, `weight` and `bias` from that of the output."""
    common = torch.promote_types(x.dtype, weight.dtype)  # they differ under autocast
    x_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_layer_norm_backward(
        gradient.to(common),
        x.to(common),
        [x.shape[-1]],
        mean.unsqueeze(-1),
        rstd.unsqueeze(-1),
        weight,
        bias,
        [True, True, True],
    )
    return x_gradient.to(x.dtype), weight_gradient, bias_gradient
