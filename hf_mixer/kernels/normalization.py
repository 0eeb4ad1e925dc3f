# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the last axis, written in Triton: `torch.ops.hf_mixer.layer_norm`."""

import torch
import triton
import triton.language as tl

from .launching import launching_on


# A row of x, (rows, num_channels), for each program
@triton.jit
def _layer_norm(x_pointer, weight_pointer, bias_pointer, output_pointer, num_channels, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < num_channels
    x = tl.load(x_pointer + row * num_channels + channels, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / num_channels
    centered = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centered * centered, axis=0) / num_channels
    weight = tl.load(weight_pointer + channels, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_pointer + channels, mask=inside, other=0.0).to(tl.float32)
    output = centered * (1.0 / tl.sqrt(variance + epsilon)) * weight + bias
    tl.store(output_pointer + row * num_channels + channels, output.to(output_pointer.dtype.element_ty), mask=inside)


def _apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    output = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[-1])
    # Eight values for each thread, which is as much as it reads at once
    num_warps = min(max(block // 256, 1), 16)
    with launching_on(x):
        _layer_norm[(x.numel() // x.shape[-1],)](
            x, weight, bias, output, x.shape[-1], eps, BLOCK=block, num_warps=num_warps
        )
    return output


# A second copy of this module finds the operator of the first; to register it again would take it away from it
if not hasattr(torch.ops.hf_mixer, "layer_norm"):
    _operator = torch.library.custom_op("hf_mixer::layer_norm", _apply, mutates_args=())
    _operator.register_fake(lambda x, weight, bias, eps: torch.empty_like(x, memory_format=torch.contiguous_format))
