# SPDX-License-Identifier: Apache-2.0
"""
Products of matrices, written in Triton, that compute what surrounds them on their tiles before these are stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .gelu import gelu_gate, gelu_gate_slope
from .launching import INTERPRETED, launching_on


# Where matrices start in memory, and how far apart their rows are, has to be a multiple of so many bytes
ALIGNMENT = 16
# With more rows, other tiles are the fastest
FEW_ROWS = 4096

# What the kernels load and store as tiles: the two factors of a product, and all that has the shape of the product
LEFT, RIGHT, RIGHT_TRANSPOSED = "left", "right", "right_transposed"
PRODUCTS = ("before", "hidden", "hidden_gradient", "x", "output")


def tile_shape(name: str, rows: int, columns: int, depth: int) -> list[int]:
    """Return how large the tiles of an argument are."""
    factors = {LEFT: [rows, depth], RIGHT: [columns, depth], RIGHT_TRANSPOSED: [depth, columns]}
    return factors.get(name, [rows, columns // 2])


def _set_tiles(arguments: dict[str, Any]) -> None:
    blocks = [arguments[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    for name in (LEFT, RIGHT, RIGHT_TRANSPOSED, *PRODUCTS):
        if arguments.get(name) is not None:
            arguments[name].block_shape = tile_shape(name, *blocks)


def autotune(
    *blocks: tuple[int, int, int, int, int, int, bool],
    also: tuple[str, ...] = (),
    reset_to_zero: list[str] | None = None,
):
    """
    Let Triton find the fastest of some (rows, columns, depth, warps, stages, programs per multiprocessor, overlap) when a
    size, and what else the arguments `also` say, is first seen in a program. Those that need more shared memory than the
    device has drop out. Two programs on a multiprocessor compute GELU and products in turn; one overlaps what it stores
    with the next tile's loads. The interpreter has no clock.
    """
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    configs = [
        triton.Config(
            {**dict(zip(names, tile)), "PROGRAMS": programs, "OVERLAP": overlap},
            num_warps=warps,
            num_stages=stages,
            pre_hook=_set_tiles,
        )
        for *tile, warps, stages, programs, overlap in ([(64, 64, 32, 4, 1, 1, False)] if INTERPRETED else blocks)
    ]
    return triton.autotune(configs, key=["few_rows", "num_columns", "depth", *also], reset_to_zero=reset_to_zero)


# The kernels multiply matrices of shape (num_rows, depth) and (num_columns, depth), the second one transposed. A program
# computes one tile of the result after the other. Matrices come as descriptors, from which tiles are loaded as a whole,
# zeros where they reach over the edge, and to which they are stored without that.
@triton.jit
def _locate(tile, num_rows, num_columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Eight rows of tiles at a time, column by column, so that what is loaded is still in the cache for the others."""
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_columns, BLOCK_N)
    group = tile // (8 * tiles_n)
    size = tl.minimum(tiles_m - group * 8, 8)
    within = tile % (8 * tiles_n)
    return (group * 8 + within % size) * BLOCK_M, within // size * BLOCK_N


@triton.jit
def _product(
    left,
    right,
    row,
    column,
    depth,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        a = left.load([row, start])
        if TRANSPOSED:
            b = right.load([start, column])
        else:
            b = tl.trans(right.load([column, start]))
        product = tl.dot(a, b, product, input_precision="ieee", out_dtype=tl.float32)
    return product


@triton.jit
def _halves(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


# Pointers:
#   bias                (num_columns,)
#   mean, rstd          (num_rows,): of the rows, where LayerNorm went into the matrix
#   sums                (num_columns,): what a row of ones would give
#   scale               (num_rows / num_patches,): what stochastic depth multiplies the branch of each image by
#   bias_gradient       (tiles of rows, num_columns)
#
# Each tile is stored as two halves, which takes half as much shared memory.
@autotune(
    (128, 256, 64, 8, 3, 1, True),
    (128, 128, 64, 4, 3, 2, False),
    (64, 128, 64, 4, 3, 2, False),
    (64, 64, 64, 4, 4, 3, False),
)
@triton.jit
def _hidden_units(
    left,
    right,
    before,
    hidden,
    bias_pointer,
    mean_pointer,
    rstd_pointer,
    sums_pointer,
    num_rows,
    num_columns,
    depth,
    few_rows,
    TANH: tl.constexpr,
    FOLDED: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    EXACT: tl.constexpr = hidden.dtype == tl.float32
    tiles = tl.cdiv(num_rows, BLOCK_M) * tl.cdiv(num_columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=OVERLAP):
        row, column = _locate(tile, num_rows, num_columns, BLOCK_M, BLOCK_N)
        product = _product(left, right, row, column, depth, False, BLOCK_M, BLOCK_N, BLOCK_K)
        rows = row + tl.arange(0, BLOCK_M)
        halves = _halves(product, BLOCK_M, BLOCK_N)
        for half in tl.static_range(2):
            start = column + half * (BLOCK_N // 2)
            columns = start + tl.arange(0, BLOCK_N // 2)
            units = halves[half]
            if FOLDED:
                mean = tl.load(mean_pointer + rows, mask=rows < num_rows, other=0.0)
                rstd = tl.load(rstd_pointer + rows, mask=rows < num_rows, other=0.0)
                sums = tl.load(sums_pointer + columns, mask=columns < num_columns, other=0.0)
                units = (units - mean[:, None] * sums[None, :]) * rstd[:, None]
            units += tl.load(bias_pointer + columns, mask=columns < num_columns, other=0.0).to(tl.float32)[None, :]
            if KEEP:
                before.store([row, start], units.to(before.dtype))
            hidden.store([row, start], (units * gelu_gate(units, TANH, EXACT)).to(hidden.dtype))


@autotune(
    (128, 256, 64, 8, 3, 1, True),
    (128, 128, 64, 4, 3, 2, False),
    (64, 128, 64, 4, 3, 2, False),
    (64, 64, 64, 4, 4, 3, False),
    # Triton does not look at the types behind descriptors, and the tokens may be wider than the rest
    also=("x_bytes",),
)
@triton.jit
def _residual_sum(
    left,
    right,
    x,
    output,
    bias_pointer,
    scale_pointer,
    num_rows,
    num_columns,
    depth,
    num_patches,
    few_rows,
    x_bytes,
    HAS_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    tiles = tl.cdiv(num_rows, BLOCK_M) * tl.cdiv(num_columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=OVERLAP):
        row, column = _locate(tile, num_rows, num_columns, BLOCK_M, BLOCK_N)
        product = _product(left, right, row, column, depth, False, BLOCK_M, BLOCK_N, BLOCK_K)
        rows = row + tl.arange(0, BLOCK_M)
        halves = _halves(product, BLOCK_M, BLOCK_N)
        for half in tl.static_range(2):
            start = column + half * (BLOCK_N // 2)
            columns = start + tl.arange(0, BLOCK_N // 2)
            bias = tl.load(bias_pointer + columns, mask=columns < num_columns, other=0.0)
            branch = halves[half] + bias.to(tl.float32)[None, :]
            if HAS_SCALE:
                scale = tl.load(scale_pointer + rows // num_patches, mask=rows < num_rows, other=0.0)
                branch *= scale.to(tl.float32)[:, None]
            output.store([row, start], (branch + x.load([row, start]).to(tl.float32)).to(output.dtype))


@autotune(
    (128, 256, 64, 8, 3, 1, True),
    (128, 128, 64, 8, 4, 1, True),
    (128, 128, 64, 4, 3, 2, False),
    (64, 128, 64, 4, 3, 2, False),
    reset_to_zero=["bias_gradient_pointer"],  # larger tiles leave rows untouched that smaller ones have filled
)
@triton.jit
def _hidden_gradients(
    left,
    right_transposed,
    before,
    hidden,
    hidden_gradient,
    bias_gradient_pointer,
    num_rows,
    num_columns,
    depth,
    few_rows,
    TANH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    EXACT: tl.constexpr = hidden.dtype == tl.float32
    tiles = tl.cdiv(num_rows, BLOCK_M) * tl.cdiv(num_columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=OVERLAP):
        row, column = _locate(tile, num_rows, num_columns, BLOCK_M, BLOCK_N)
        product = _product(left, right_transposed, row, column, depth, True, BLOCK_M, BLOCK_N, BLOCK_K)
        halves = _halves(product, BLOCK_M, BLOCK_N)
        for half in tl.static_range(2):
            start = column + half * (BLOCK_N // 2)
            columns = start + tl.arange(0, BLOCK_N // 2)
            units = before.load([row, start]).to(tl.float32)
            gate = gelu_gate(units, TANH, EXACT)
            hidden.store([row, start], (units * gate).to(hidden.dtype))
            gradient = halves[half] * (gate + units * gelu_gate_slope(units, gate, TANH, EXACT))
            hidden_gradient.store([row, start], gradient.to(hidden_gradient.dtype))
            # Rows over the edge are zero, as are their gradients
            bias_gradient = bias_gradient_pointer + row // BLOCK_M * num_columns + columns
            tl.store(bias_gradient, tl.sum(gradient, axis=0), mask=columns < num_columns)


def hidden_units(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tanh: bool,
    keep: bool,
    norm: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Apply a linear layer and GELU.

    Args:
        rows (`torch.Tensor` of shape `(num_rows, depth)`), weight (`torch.Tensor` of shape `(num_columns, depth)`):
            The factors, as [`lay`] returns them.
        bias (`torch.Tensor` of shape `(num_columns,)`):
            What is added to each row.
        tanh (`bool`):
            Whether GELU is the approximation with tanh.
        keep (`bool`):
            Whether to return what GELU is applied to as well.
        norm (`tuple[torch.Tensor]`, *optional*):
            Means and reciprocal deviations of the rows, and the sums of `weight` over the depth: then the rows are
            normalized, though what is multiplied are the rows as they are.

    Returns:
        `tuple`: the hidden units of shape `(num_rows, num_columns)`, and the same before GELU or `None`.
    """
    mean, rstd, sums = norm or (None, None, None)
    hidden = rows.new_empty(len(rows), len(weight))
    before = torch.empty_like(hidden) if keep else None
    _launch(
        _hidden_units,
        rows,
        len(weight),
        right=_describe(weight),
        before=None if before is None else _describe(before),
        hidden=_describe(hidden),
        bias_pointer=bias,
        mean_pointer=mean,
        rstd_pointer=rstd,
        sums_pointer=sums,
        TANH=tanh,
        FOLDED=norm is not None,
        KEEP=keep,
    )
    return hidden, before


def residual_sum(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """
    Apply a linear layer to the rows of all tokens, multiply what it gives for each image by its `scale`, and add that to
    `x`, of shape `(batch_size, num_patches, num_channels)`.
    """
    output = torch.empty_like(x)
    _launch(
        _residual_sum,
        rows,
        len(weight),
        right=_describe(weight),
        x=_describe(x.flatten(0, 1)),
        output=_describe(output.flatten(0, 1)),
        bias_pointer=bias,
        scale_pointer=scale,
        num_patches=x.shape[1],
        x_bytes=x.element_size(),
        HAS_SCALE=scale is not None,
    )
    return output


def hidden_gradients(
    gradient: torch.Tensor, weight: torch.Tensor, before: torch.Tensor, tanh: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    From the gradient of what a linear layer makes of GELU of `before`, return GELU of `before`, the gradient of `before`,
    and the sum of the latter over the rows in float32. `weight` is that of the linear layer, `(num_channels, num_hidden)`.
    """
    hidden, hidden_gradient = torch.empty_like(before), torch.empty_like(before)
    smallest = min(config.kwargs["BLOCK_M"] for config in _hidden_gradients.configs)
    num_tiles, num_hidden = triton.cdiv(len(before), smallest), before.shape[1]
    bias_gradient = torch.zeros(num_tiles, num_hidden, device=before.device, dtype=torch.float32)
    _launch(
        _hidden_gradients,
        gradient,
        num_hidden,
        right_transposed=_describe(weight),
        before=_describe(before),
        hidden=_describe(hidden),
        hidden_gradient=_describe(hidden_gradient),
        bias_gradient_pointer=bias_gradient,
        TANH=tanh,
    )
    return hidden, hidden_gradient, bias_gradient.sum(0)


def lay(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` in one piece that starts at an aligned address."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _describe(matrix: torch.Tensor) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [1, 1])  # `_set_tiles` knows how large the tiles are


def _launch(kernel, rows: torch.Tensor, num_columns: int, **arguments) -> None:
    num_rows, depth = rows.shape
    # In the interpreter few programs, so that each computes several tiles
    processors = torch.cuda.get_device_properties(rows.device).multi_processor_count if rows.is_cuda else 2

    def grid(meta):
        tiles = triton.cdiv(num_rows, meta["BLOCK_M"]) * triton.cdiv(num_columns, meta["BLOCK_N"])
        return (min(tiles, processors * meta["PROGRAMS"]),)

    with launching_on(rows):
        kernel[grid](
            left=_describe(rows),
            num_rows=num_rows,
            num_columns=num_columns,
            depth=depth,
            few_rows=num_rows <= FEW_ROWS,
            **arguments,
        )
