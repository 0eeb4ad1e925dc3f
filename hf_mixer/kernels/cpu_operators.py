# SPDX-License-Identifier: Apache-2.0
"""
A layer on a processor in bfloat16, with gradients: `torch.ops.hf_mixer.cpu_layer` and what it takes.

The parameters of a layer are four matrices, of `token_mixing.fc1` and `fc2` and `channel_mixing.fc1` and `fc2`, and eight
vectors: weight and bias of `token_norm` and `channel_norm`, and the biases of the four linear layers in the same order.
"""

import ctypes
from typing import Any

import torch

from .cpu_library import cpu_library


# What `hidden_size`, `token_mlp_dim` and `channel_mlp_dim` are multiples of
MULTIPLE = 32
MATRICES = ("token_fc1", "token_fc2", "channel_fc1", "channel_fc2")
VECTORS = (
    "token_norm_weight",
    "token_norm_bias",
    "channel_norm_weight",
    "channel_norm_bias",
    "token_fc1_bias",
    "token_fc2_bias",
    "channel_fc1_bias",
    "channel_fc2_bias",
)


class Layer(ctypes.Structure):
    """As `Layer` of cpu_layer.cpp has it."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("images", "tokens", "channels", "token_hidden", "channel_hidden")),
        ("threads", ctypes.c_int32),
        ("tanh", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("scales", *VECTORS, *MATRICES)),
        *((f"{name}_back", ctypes.c_void_p) for name in MATRICES),
    ]


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _describe(
    x: torch.Tensor,
    matrices: dict[str, torch.Tensor],
    vectors: list[torch.Tensor],
    scales: torch.Tensor | None,
    epsilon: float,
    tanh: bool,
) -> Layer:
    """Return what the library reads, which holds the tensors that it points to."""
    if x.dtype != torch.bfloat16:
        raise ValueError(
            f"expected tokens of type torch.bfloat16, got {x.dtype}: compute without autocast, or under autocast to bfloat16"
        )
    num_images, num_tokens, num_channels = x.shape
    if num_images == 0:
        raise ValueError(f"expected at least one image, got tokens of shape {tuple(x.shape)}")
    tensors = dict(zip(VECTORS, (vector.float().contiguous() for vector in vectors)))
    expected = {"token_norm_weight": num_channels, "token_fc2_bias": num_tokens}
    if any(len(tensors[name]) != size for name, size in expected.items()):
        raise ValueError(
            f"tokens of shape {tuple(x.shape)} do not fit a layer for {len(tensors['token_fc2_bias'])} tokens of "
            f"{len(tensors['token_norm_weight'])} channels"
        )
    if scales is not None:
        tensors["scales"] = scales.float().contiguous()
    layer = Layer(
        images=num_images,
        tokens=num_tokens,
        channels=num_channels,
        token_hidden=len(tensors["token_fc1_bias"]),
        channel_hidden=len(tensors["channel_fc1_bias"]),
        threads=min(torch.get_num_threads(), num_images),
        tanh=tanh,
        epsilon=epsilon,
        **{name: tensor.data_ptr() for name, tensor in (tensors | matrices).items()},
    )
    layer.tensors = tensors
    return layer


def _check(failed: int, x: torch.Tensor) -> None:
    if failed:
        raise MemoryError(
            f"there is no memory for a layer with tokens of shape {tuple(x.shape)}: compute with fewer threads, for instance by "
            "`torch.set_num_threads`"
        )


def _pack(matrix: torch.Tensor, for_right: bool, transposed: bool) -> torch.Tensor:
    if matrix.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected a matrix of type torch.float32 or torch.bfloat16, got {matrix.dtype}")
    matrix = matrix.contiguous()
    packed = _empty_packed(matrix, for_right, transposed)
    narrow, threads = matrix.dtype == torch.bfloat16, torch.get_num_threads()
    cpu_library().hf_mixer_pack(
        _address(matrix), narrow, *matrix.shape, for_right, not transposed, _address(packed), threads
    )
    return packed


def _empty_packed(matrix, for_right, transposed):
    num_rows, num_columns = (-(-size // MULTIPLE) for size in matrix.shape)
    return matrix.new_empty(num_rows * num_columns * MULTIPLE * MULTIPLE, dtype=torch.bfloat16)


@torch.library.custom_op("hf_mixer::pack", mutates_args=())
def pack(matrix: torch.Tensor, for_right: bool, transposed: bool) -> torch.Tensor:
    """
    Return a matrix, or its transpose, in bfloat16 as the left side of a product. For the right side, return the transpose
    of that. The layout is that of `Operand` in cpu_layer.cpp.
    """
    return _pack(matrix, for_right, transposed)


pack.register_fake(_empty_packed)


def pack_matrices(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the four matrices of a layer as its products read them."""
    return [pack(matrix, index >= 2, False) for index, matrix in enumerate(matrices)]


@torch.library.custom_op("hf_mixer::cpu_layer", mutates_args=())
def cpu_layer(
    x: torch.Tensor,
    packed: list[torch.Tensor],
    vectors: list[torch.Tensor],
    scales: torch.Tensor | None,
    epsilon: float,
    tanh: bool,
) -> torch.Tensor:
    """
    Return what a layer makes of tokens.

    Args:
        x (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): The tokens, in bfloat16.
        packed (list of `torch.Tensor`): The four matrices, of [`pack_matrices`].
        vectors (list of `torch.Tensor`): The eight vectors.
        scales (`torch.Tensor` of shape `(2, batch_size)`, *optional*): What multiplies both residual branches.
        epsilon (`float`): Of LayerNorm.
        tanh (`bool`): Whether GELU is the approximation by tanh.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    layer = _describe(x, dict(zip(MATRICES, packed)), vectors, scales, epsilon, tanh)
    _check(cpu_library().hf_mixer_forward(ctypes.byref(layer), _address(x), _address(out)), x)
    return out


@cpu_layer.register_fake
def _(x, packed, vectors, scales, epsilon, tanh):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("hf_mixer::cpu_layer_backward", mutates_args=())
def cpu_layer_backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    matrices: list[torch.Tensor],
    vectors: list[torch.Tensor],
    scales: torch.Tensor | None,
    epsilon: float,
    tanh: bool,
) -> list[torch.Tensor]:
    """Return the gradients of the tokens, of the matrices, in their types, and of the vectors, in float32."""
    x, grad_output = x.contiguous(), grad_output.contiguous()
    dtypes = {matrix.dtype for matrix in matrices}
    if len(dtypes) > 1:
        raise ValueError(f"expected matrices of one type, got {', '.join(map(str, dtypes))}")
    packed = {
        name + suffix: _pack(matrix, name.startswith("channel"), bool(suffix))
        for name, matrix in zip(MATRICES, matrices)
        for suffix in ("", "_back")
    }
    layer = _describe(x, packed, vectors, scales, epsilon, tanh)
    grad_input, *gradients = _empty_gradients(grad_output, x, matrices, vectors, scales, epsilon, tanh)
    pointers = [gradient.data_ptr() for gradient in gradients]
    failed = cpu_library().hf_mixer_backward(
        ctypes.byref(layer),
        *(_address(each) for each in (x, grad_output, grad_input)),
        matrices[0].dtype == torch.bfloat16,
        (ctypes.c_void_p * len(matrices))(*pointers[: len(matrices)]),
        (ctypes.c_void_p * len(vectors))(*pointers[len(matrices) :]),
    )
    _check(failed, x)
    return [grad_input, *gradients]


@cpu_layer_backward.register_fake
def _empty_gradients(grad_output, x, matrices, vectors, scales, epsilon, tanh):
    vector_gradients = [vector.new_empty(vector.shape, dtype=torch.float32) for vector in vectors]
    grad_input = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [grad_input, *(matrix.new_empty(matrix.shape) for matrix in matrices), *vector_gradients]


class CpuLayer(torch.autograd.Function):
    """A layer with gradients, which keeps its input alone for them."""

    @staticmethod
    def forward(ctx: Any, x, scales, epsilon, tanh, *parameters):
        ctx.save_for_backward(x, scales, *parameters)
        ctx.epsilon, ctx.tanh = epsilon, tanh
        matrices, vectors = list(parameters[:4]), list(parameters[4:])
        return cpu_layer(x, pack_matrices(matrices), vectors, scales, epsilon, tanh)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output):
        x, scales, *parameters = ctx.saved_tensors
        grad_input, *gradients = cpu_layer_backward(
            grad_output.to(x.dtype), x, parameters[:4], parameters[4:], scales, ctx.epsilon, ctx.tanh
        )
        gradients = [gradient.to(each.dtype) for gradient, each in zip(gradients, parameters)]
        return grad_input, None, None, None, *gradients
