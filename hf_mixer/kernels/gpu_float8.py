# SPDX-License-Identifier: Apache-2.0
"""
Channel mixing in float8 (e4m3), written in Triton: `torch.ops.hf_mixer.float8_normalize` and
`torch.ops.hf_mixer.float8_linear`.

All factors are known before there are any tokens: what a LayerNorm has normalized is at most the square root of the number of
channels, and so is its norm, which bounds the hidden units. Nothing is looked at twice, and nothing overflows. That leaves a
part of the exponents unused, which costs floats no precision.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .gpu_launching import INTERPRETED, launching_on
from .gpu_linear import ALIGNMENT, GROUP, aligned, find_tile
from .gpu_normalization import center_row


# The interpreter multiplies no float8
FLOAT8 = torch.float32 if INTERPRETED else torch.float8_e4m3fn
LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Tile(NamedTuple):
    """
    The part of an output that a program computes at once, the part of the inner axis that it loads at once, how, and how many
    programs share a multiprocessor.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    programs: int


# With GELU, where one program computes while another one finishes its tile, and with a residual connection. Of the tiles that
# were tried for B/16 on an H200 (torch 2.11, Triton 3.6), they have the most TFLOP/s: 872 (one program of 128 x 256: 737) and
# 1,113 (two programs of 128 x 128: 928); the matrix products of torch alone have 1,062 and 1,375.
TILES = [Tile(128, 128, 128, 4, 3, 2), Tile(128, 256, 128, 8, 3, 1)]


@triton.jit
def _tanh(x, EXACT: tl.constexpr):
    if EXACT:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    # The instruction of the hardware is off by up to 2^-11, e4m3 by up to 2^-4
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


# A row of x, (num_rows, num_channels), for each program
@triton.jit
def _normalize(x_pointer, output_pointer, num_channels, epsilon, factor, CHANNELS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * num_channels
    channels = tl.arange(0, CHANNELS)
    inside = channels < num_channels
    centered, variance = center_row(x_pointer + start, channels, inside, num_channels)
    scale = factor / tl.sqrt(variance + epsilon)
    tl.store(output_pointer + start + channels, (centered * scale).to(output_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _finish(
    sums,
    factors_pointer,
    output,
    residual,
    row,
    column,
    num_columns,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    scale = tl.load(factors_pointer + columns, mask=inside, other=0.0)
    bias = tl.load(factors_pointer + num_columns + columns, mask=inside, other=0.0)
    x = tl.fma(sums, scale[None, :], bias[None, :])
    if HAS_RESIDUAL:
        x += residual.load([row, column]).to(tl.float32)
    else:
        half = x * tl.load(factors_pointer + 2 * num_columns + columns, mask=inside, other=0.0)[None, :]
        tanh = _tanh(x * tl.fma(x * x, 0.035677408136300125, 0.7978845608028654), output.dtype == tl.float32)
        x = tl.fma(half, tanh, half)
    output.store([row, column], x.to(output.dtype))


# Descriptors of
#   x, output, residual     (num_rows, num_inner or num_columns)
#   weight                  (num_columns, num_inner)
# and a pointer to the scales, the bias, and, without a residual connection, half the scales of the output, in float32
@triton.jit
def _float8_linear(
    x,
    weight,
    factors_pointer,
    output,
    residual,
    num_rows,
    num_columns,
    num_inner,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    row_blocks, column_blocks = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    # One loop over the products of all tiles, so that the next tile is being loaded while this one is finished
    for tile in tl.range(tl.program_id(0), row_blocks * column_blocks, tl.num_programs(0), flatten=True):
        row, column = find_tile(tile, row_blocks, column_blocks, ROWS, COLUMNS, GROUP)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(tl.cdiv(num_inner, INNER)):
            left, right = x.load([row, block * INNER]), weight.load([column, block * INNER])
            # Triton leaves float8 sums to the matrix units, which keep about 14 bits: far more than the operands have
            sums = tl.dot(left, right.T, sums, input_precision="ieee")
        # In halves, which need less shared memory on their way out
        first, second = tl.split(tl.reshape(sums, (ROWS, 2, COLUMNS // 2)).permute(0, 2, 1))
        _finish(first, factors_pointer, output, residual, row, column, num_columns, HAS_RESIDUAL, ROWS, COLUMNS // 2)
        column += COLUMNS // 2
        _finish(second, factors_pointer, output, residual, row, column, num_columns, HAS_RESIDUAL, ROWS, COLUMNS // 2)


def normal_factor(num_channels: int) -> float:
    """What normalized values are multiplied by in float8: they are at most the square root of their number."""
    return 2.0 ** math.floor(math.log2(LARGEST / math.sqrt(num_channels)))


def _normalize_rows(x: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.contiguous()
    output = torch.empty_like(x, dtype=FLOAT8)
    num_channels = x.shape[-1]
    block = triton.next_power_of_2(num_channels)
    with launching_on(x):
        _normalize[(x.numel() // num_channels,)](
            *(x, output, num_channels, eps, normal_factor(num_channels)),
            CHANNELS=block,
            num_warps=max(1, block // 1024),
        )
    return output


def _apply_linear(
    x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    weight, factors = weight.view(x.dtype), factors.view(torch.float32)
    num_columns, num_inner = weight.shape
    shape = (*x.shape[:-1], num_columns)
    if (
        x.shape[-1] != num_inner
        or factors.shape != (3 if residual is None else 2, num_columns)
        or (residual is not None and residual.shape != shape)
        or (num_columns % ALIGNMENT or num_inner % ALIGNMENT)
    ):
        others = None if residual is None else tuple(residual.shape)
        raise ValueError(
            f"tokens of shape {tuple(x.shape)} do not fit a weight of shape {tuple(weight.shape)}, factors of shape "
            f"{tuple(factors.shape)} and a residual of shape {others}, or sizes are no multiples of {ALIGNMENT}"
        )
    output = torch.empty(shape, device=x.device, dtype=x.dtype if residual is None else residual.dtype)
    x, weight, added = (
        aligned(part.reshape(-1, part.shape[-1])) for part in (x, weight, output if residual is None else residual)
    )
    written = output.view(-1, num_columns)
    num_rows = len(written)
    tile = TILES[residual is not None]
    num_programs = 1
    if not INTERPRETED:
        num_programs = tile.programs * torch.cuda.get_device_properties(x.device).multi_processor_count
    num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns)
    half = [tile.rows, tile.columns // 2]
    with launching_on(output):
        _float8_linear[(min(num_tiles, num_programs),)](
            TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]),
            TensorDescriptor.from_tensor(weight, [tile.columns, tile.inner]),
            factors.contiguous(),
            *(TensorDescriptor.from_tensor(written, half), TensorDescriptor.from_tensor(added, half)),
            *(num_rows, num_columns, num_inner),
            HAS_RESIDUAL=residual is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            INNER=tile.inner,
            GROUP=GROUP,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return output


def _fake_linear(x, weight, factors, residual):
    return x.new_empty((*x.shape[:-1], len(weight)), dtype=x.dtype if residual is None else residual.dtype)


# A second copy of this module finds the operators of the first; to register them again would take them away from it
if not hasattr(torch.ops.hf_mixer, "float8_linear"):
    torch.library.custom_op("hf_mixer::float8_normalize", _normalize_rows, mutates_args=()).register_fake(
        lambda x, eps: torch.empty_like(x, dtype=FLOAT8, memory_format=torch.contiguous_format)
    )
    torch.library.custom_op("hf_mixer::float8_linear", _apply_linear, mutates_args=()).register_fake(_fake_linear)
