# SPDX-License-Identifier: Apache-2.0
"""
A linear layer over the last or the second axis, with GELU or a residual connection, written in Triton:
`torch.ops.hf_mixer.linear`.

Bias, GELU and residual connection are applied to the sums of the matrix product while they are in registers, so that each
tensor is written once and never read again for that. Operands come through the tensor memory accelerator of Hopper GPUs,
which also fills up what is missing at the end of a row, such as at 196 patches.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor

from .gpu_gelu import gelu_gate
from .gpu_launching import INTERPRETED, launching_on


# No activation, and GELU with the `approximate` of `torch.nn.functional.gelu`
ACTIVATIONS = (None, "none", "tanh")
# Rows start at multiples of 16 bytes
ALIGNMENT = 16


class Tile(NamedTuple):
    """
    The part of an output that a program computes at once, the part of the inner axis that it loads at once, and how: with a
    residual connection. Without one, there is memory for one more stage.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def num_tiles(self, num_rows: int, num_columns: int) -> int:
        """How many cover the output for one image."""
        return triton.cdiv(num_rows, self.rows) * triton.cdiv(num_columns, self.columns)


# The larger a tile, the less is read for it; the smaller, the more of a GPU have something to do, and the less of it is padding
TILES = [Tile(128, 256, 64, 8, 3), Tile(64, 256, 64, 4, 3), Tile(64, 64, 128, 4, 4)]
# Values computed for each one that is wanted
MAX_PADDING = 1.5
# Row blocks that share what is read of the columns
GROUP = 8


@triton.jit
def find_tile(place, row_blocks, column_blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return the first row and column of a tile. Those of `GROUP` row blocks follow each other."""
    group = place // (GROUP * column_blocks)
    height = min(row_blocks - group * GROUP, GROUP)
    row = (group * GROUP + place % (GROUP * column_blocks) % height) * ROWS
    column = place % (GROUP * column_blocks) // height * COLUMNS
    return row, column


@triton.jit
def _finish(
    sums,
    bias_pointer,
    output,
    residual,
    image,
    row,
    column,
    num_features,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVER_TOKENS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    EXACT: tl.constexpr = output.dtype == tl.float32
    if OVER_TOKENS:
        features = row + tl.arange(0, ROWS)
        sums += tl.load(bias_pointer + features, mask=features < num_features, other=0.0).to(tl.float32)[:, None]
    else:
        features = column + tl.arange(0, COLUMNS)
        sums += tl.load(bias_pointer + features, mask=features < num_features, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != 0:
        sums *= gelu_gate(sums, ACTIVATION == 2, EXACT)
    if HAS_RESIDUAL:
        sums += residual.load([image, row, column]).reshape(ROWS, COLUMNS).to(tl.float32)
    output.store([image, row, column], sums.to(output.dtype).reshape(1, ROWS, COLUMNS))


# Descriptors of
#   x, output, residual     (num_images, rows, columns); over the last axis, all tokens are rows of one image
#   weight                  (num_features, num_inner)
@triton.jit
def _linear(
    x,
    weight,
    bias_pointer,
    output,
    residual,
    num_images,
    num_rows,
    num_columns,
    num_inner,
    num_features,
    OVER_TOKENS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    row_blocks, column_blocks = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    in_image = row_blocks * column_blocks
    # One loop over the products of all tiles, so that the next tile is being loaded while this one is finished
    for tile in tl.range(tl.program_id(0), num_images * in_image, tl.num_programs(0), flatten=True):
        image, place = tile // in_image, tile % in_image
        row, column = find_tile(place, row_blocks, column_blocks, ROWS, COLUMNS, GROUP)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(tl.cdiv(num_inner, INNER)):
            inner = block * INNER
            if OVER_TOKENS:
                left = weight.load([row, inner])
                right = x.load([image, inner, column]).reshape(INNER, COLUMNS)
            else:
                left = x.load([image, row, inner]).reshape(ROWS, INNER)
                right = weight.load([column, inner]).T
            sums = tl.dot(left, right, sums, input_precision="ieee")
        # In halves, which need less shared memory on their way out
        halves = tl.reshape(sums, (ROWS, 2, COLUMNS // 2)).permute(0, 2, 1)
        first, second = tl.split(halves)
        _finish(
            *(first, bias_pointer, output, residual, image, row, column, num_features),
            *(ROWS, COLUMNS // 2, OVER_TOKENS, ACTIVATION, HAS_RESIDUAL),
        )
        _finish(
            *(second, bias_pointer, output, residual, image, row, column + COLUMNS // 2, num_features),
            *(ROWS, COLUMNS // 2, OVER_TOKENS, ACTIVATION, HAS_RESIDUAL),
        )


def _choose_tile(num_images: int, num_rows: int, num_columns: int, num_programs: int) -> Tile:
    """Return the first tile of which there is one for each program, and that is not filled up with padding."""
    for tile in TILES:
        num_tiles = tile.num_tiles(num_rows, num_columns)
        is_full = num_tiles * tile.rows * tile.columns <= MAX_PADDING * num_rows * num_columns
        if is_full and num_images * num_tiles >= num_programs:
            break
    return tile


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy whose rows start where the hardware reads them."""
    missing = -tensor.shape[-1] % (ALIGNMENT // tensor.element_size())
    if missing:
        return nn.functional.pad(tensor, (0, missing))[..., : tensor.shape[-1]]
    # An axis of size 1 may have any stride, which the hardware would not take: a view from one axis has the usual ones
    tensor = tensor.reshape(-1).view(tensor.shape)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _output_shape(x: torch.Tensor, weight: torch.Tensor, over_tokens: bool) -> tuple[int, int, int]:
    num_images, num_tokens, num_channels = x.shape
    return (num_images, len(weight), num_channels) if over_tokens else (num_images, num_tokens, len(weight))


def _apply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    gelu: str | None,
    over_tokens: bool,
) -> torch.Tensor:
    num_inner = x.shape[1] if over_tokens else x.shape[2]
    shape = _output_shape(x, weight, over_tokens)
    if (
        weight.shape[1] != num_inner
        or bias.shape != weight.shape[:1]
        or (residual is not None and residual.shape != shape)
    ):
        others = None if residual is None else tuple(residual.shape)
        raise ValueError(
            f"tokens of shape {tuple(x.shape)} do not fit a weight of shape {tuple(weight.shape)}, a bias of shape "
            f"{tuple(bias.shape)} and a residual of shape {others}"
        )
    output = torch.empty(shape, device=x.device, dtype=x.dtype)
    x, weight = aligned(x), aligned(weight)
    parts = [x, output, output if residual is None else aligned(residual)]
    if not over_tokens:
        parts = [part.reshape(1, -1, part.shape[-1]) for part in parts]
    num_images, num_rows, num_columns = parts[1].shape
    num_programs = 1 if INTERPRETED else torch.cuda.get_device_properties(x.device).multi_processor_count
    tile = _choose_tile(num_images, num_rows, num_columns, num_programs)
    x_block = [1, tile.inner, tile.columns] if over_tokens else [1, tile.rows, tile.inner]
    weight_block = [tile.rows if over_tokens else tile.columns, tile.inner]
    half = [1, tile.rows, tile.columns // 2]
    x, written, added = (
        TensorDescriptor.from_tensor(part, block) for part, block in zip(parts, (x_block, half, half))
    )
    with launching_on(output):
        _linear[(min(num_images * tile.num_tiles(num_rows, num_columns), num_programs),)](
            *(x, TensorDescriptor.from_tensor(weight, weight_block), bias.contiguous(), written, added),
            *(num_images, num_rows, num_columns, num_inner, len(bias)),
            OVER_TOKENS=over_tokens,
            ACTIVATION=ACTIVATIONS.index(gelu),
            HAS_RESIDUAL=residual is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            INNER=tile.inner,
            GROUP=GROUP,
            num_warps=tile.warps,
            num_stages=tile.stages + (residual is None),
        )
    return output


def _fake(x, weight, bias, residual, gelu, over_tokens):
    return x.new_empty(_output_shape(x, weight, over_tokens))


# A second copy of this module finds the operator of the first; to register it again would take it away from it
if not hasattr(torch.ops.hf_mixer, "linear"):
    torch.library.custom_op("hf_mixer::linear", _apply, mutates_args=()).register_fake(_fake)
