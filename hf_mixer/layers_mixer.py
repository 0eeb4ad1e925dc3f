# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The layers of the MLP-Mixer: token mixing and channel mixing."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transformers.activations import ACT2FN, GELUActivation, GELUTanh
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_mixer import MixerConfig


# The `approximate` of `torch.nn.functional.gelu`
GELU_APPROXIMATIONS = {GELUActivation: "none", GELUTanh: "tanh"}


def is_untouched(module: nn.Module) -> bool:
    """
    Whether calling `module` runs its class's `forward` and nothing else: it has no hooks, and no `forward` of its own,
    as Accelerate's offloading sets. The attributes are those of torch 2.13, which has no public function that tells of
    hooks.
    """
    return (
        "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not nn.modules.module._has_any_global_hook()
    )


def is_plain(module: nn.Module, expected: type[nn.Module]) -> bool:
    """
    Whether calling `module` does what `expected` does with its weight and bias, and nothing else: it is no subclass or
    wrapper, has no hooks, and its weights are neither quantized nor sharded over devices.
    """
    return (
        type(module) is expected
        and module.bias is not None
        and not hasattr(type(module.weight), "__tensor_flatten__")  # quantized tensors, DTensor
        and is_untouched(module)
    )


# The hidden units of one product that are computed anew for the backward pass, rather than kept, from this many bytes on: to
# start that takes a GPU as long as to compute what is smaller
MIN_RECOMPUTED_BYTES = 2**25


def is_worth_recomputing(hidden_states: torch.Tensor) -> bool:
    """Whether the backward pass computes what follows `hidden_states` anew. The transforms of `torch.func` cannot."""
    is_large = hidden_states.is_cuda and hidden_states.numel() * hidden_states.element_size() >= MIN_RECOMPUTED_BYTES
    if not (is_large and torch.is_grad_enabled()):
        return False
    return torch.compiler.is_compiling() or torch.func.debug_unwrap(hidden_states) is hidden_states


class MixerMLP(nn.Module):
    """Two linear layers over the last axis, which holds the `num_features` values to mix."""

    def __init__(self, config: MixerConfig, num_features: int, mlp_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(num_features, mlp_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(mlp_dim, num_features)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def apply_linear(self, linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply `fc1` or `fc2` to the axis to mix."""
        return linear(hidden_states)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the activation function to what `fc1` returned."""
        approximation = GELU_APPROXIMATIONS.get(type(self.activation_fn))
        # The backward pass needs the values before the activation, and a hook may keep them
        must_keep = (
            torch.is_grad_enabled() or not is_plain(self.fc1, nn.Linear) or not is_untouched(self.activation_fn)
        )
        if approximation is None or must_keep:
            return self.activation_fn(hidden_states)
        # In place: the hidden units are the largest tensor, and a second one for them takes the CPU a tenth longer
        return torch.ops.aten.gelu_(hidden_states, approximate=approximation)

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute what follows `fc1`."""
        hidden_states = self.dropout(self.activate(hidden_states))
        return self.dropout(self.apply_linear(self.fc2, hidden_states))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.apply_linear(self.fc1, hidden_states)
        # What has hooks is called once
        is_bare = is_plain(self.fc2, nn.Linear) and is_untouched(self.activation_fn) and is_untouched(self.dropout)
        if is_bare and is_worth_recomputing(hidden_states):
            # The values before the activation are kept, those after it are not: two thirds of the memory. The product is
            # not computed again, since its backward pass needs its operands only.
            has_dropout = self.dropout.training and self.dropout.p > 0
            return checkpoint(self.finish, hidden_states, use_reentrant=False, preserve_rng_state=has_dropout)
        return self.finish(hidden_states)


# The narrow types, and what a processor has that multiplies them, as `torch.cpu.get_capabilities` calls it on x86 and on ARM
MULTIPLIERS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the type that autocast gives the operands of linear layers, `None` where it is off."""
    # torch raises for devices without autocast, such as meta, and Dynamo of torch 2.11 cannot ask which these are
    is_on = device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_on else None


def operand_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """Return the type in which a linear layer multiplies `hidden_states`."""
    return autocast_dtype(hidden_states.device.type) or hidden_states.dtype


@torch.compiler.assume_constant_result
def multiplies(dtype: torch.dtype) -> bool:
    """Whether `dtype` is narrow and this processor multiplies it itself. Others convert it to float32 first."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in MULTIPLIERS.get(dtype, ()))


def has_matrix_units(hidden_states: torch.Tensor) -> bool:
    """Whether a linear layer multiplies `hidden_states` in a narrow type that the device multiplies itself."""
    dtype, device_type = operand_dtype(hidden_states), hidden_states.device.type
    return dtype in MULTIPLIERS and (device_type == "cuda" or (device_type == "cpu" and multiplies(dtype)))


def linear_over_tokens(linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    Apply `linear` to the second axis of `hidden_states`, `(batch_size, num_features, hidden_size)`.

    Multiplying from the left saves the two transposed copies that `nn.Linear` needs. Which function of torch is fastest at it
    depends on the type and the device. Milliseconds for the first product of B/16, weights that require gradients: 8 images on
    two cores of an Intel Xeon with AMX, torch 2.13 (AVX2 is imitated: `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`), and
    256 images on an H200, torch 2.11:

    |                | `nn.Linear` | `matmul` | `baddbmm` | `bmm` | `bmm`, aligned weight |
    |----------------|-------------|----------|-----------|-------|-----------------------|
    | bfloat16, AMX  | 1.3         | 4.9      | 0.6       |       |                       |
    | bfloat16, AVX2 | 55          | 43       | 403       |       |                       |
    | bfloat16, H200 | 0.43        | 0.22     | 0.46      | 0.22  | 0.08                  |
    """
    if not is_plain(linear, nn.Linear):
        return linear(hidden_states.transpose(1, 2)).transpose(1, 2)
    weight, bias, dtype = linear.weight, linear.bias.unsqueeze(-1), operand_dtype(hidden_states)
    device_type = hidden_states.device.type
    if autocast_dtype(device_type) is not None:
        weight = weight.to(dtype)  # autocast would do it after the expansion, for every image
    if device_type == "cpu" and dtype in MULTIPLIERS and not multiplies(dtype):
        return torch.matmul(weight, hidden_states).add_(bias)
    if device_type == "cuda" and weight.shape[1] % 8:
        # Matrix units read rows that start at multiples of 16 bytes, and those of 196 patches do not: columns may
        weight = weight.t().contiguous().t()
    weight = weight.expand(hidden_states.shape[0], -1, -1)
    if device_type == "cuda" and torch.compiler.is_compiling():
        # `baddbmm` writes the bias into its output first, compiled code adds it where it reads the output anyway
        return torch.bmm(weight, hidden_states) + bias.to(weight.dtype)
    return torch.baddbmm(bias, weight, hidden_states)


def is_exported() -> bool:
    """
    Whether `torch.export` traces the model, which is then for another runtime. Dynamo is left out: with torch 2.11 it says
    in every compilation that it exports.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


class MixerTokenMLP(MixerMLP):
    """The same two linear layers over the second of three axes."""

    def apply_linear(self, linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        return linear(hidden_states) if is_exported() else linear_over_tokens(linear, hidden_states)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if is_exported():
            # Other runtimes and their quantizers know products with weights on the right
            return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)
        return super().forward(hidden_states)


class MixerDropPath(nn.Module):
    """
    Drop whole samples of a residual branch in training, and divide the others by the keep probability, as in [Deep
    Networks with Stochastic Depth](https://huggingface.co/papers/1603.09382).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        keep = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) < keep_prob
        return hidden_states * keep.to(hidden_states.dtype) / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class MixerLayer(GradientCheckpointingLayer):
    """Token mixing, then channel mixing, each with a LayerNorm before it and a residual connection around it."""

    # `hf_mixer.kernels.use_kernels` sets this, on the layers of one model: a function that takes a layer and its
    # tokens and returns what the layer does, or `None` where it has to do it itself
    kernel: Callable[..., torch.Tensor | None] | None = None

    def __init__(self, config: MixerConfig, layer_idx: int):
        super().__init__()
        self.token_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_mixing = MixerTokenMLP(config, config.num_patches, config.token_mlp_dim)
        self.channel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.channel_mixing = MixerMLP(config, config.hidden_size, config.channel_mlp_dim)
        self.drop_path = MixerDropPath(config.drop_path_rate * layer_idx / max(config.num_hidden_layers - 1, 1))

    def mix_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.token_norm(hidden_states)
        hidden_states = self.token_mixing(hidden_states)
        return self.drop_path(hidden_states) + residual

    def mix_channels(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.channel_norm(hidden_states)
        hidden_states = self.channel_mixing(hidden_states)
        return self.drop_path(hidden_states) + residual

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        if self.kernel is not None:
            output = self.kernel(self, hidden_states)
            if output is not None:
                return output
        return self.mix_channels(self.mix_tokens(hidden_states))
