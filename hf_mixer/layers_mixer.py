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

import torch
from torch import nn

from transformers.activations import ACT2FN, GELUActivation, GELUTanh
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_mixer import MixerConfig


# The `approximate` of `torch.nn.functional.gelu`
GELU_APPROXIMATIONS = {GELUActivation: "none", GELUTanh: "tanh"}


def is_untouched(module: nn.Module) -> bool:
    """Whether calling `module` does nothing but what its class says: no hooks, and no other forward pass."""
    return (
        "forward" not in vars(module)  # Accelerate's offloading
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not nn.modules.module._has_any_global_hook()
    )


def is_plain(module: nn.Module, expected: type[nn.Module]) -> bool:
    """
    Whether calling `module` does nothing but what `expected` does with its weight and bias: it is no subclass or
    wrapper, has no hooks, and its weights are neither quantized nor spread over devices.
    """
    return (
        type(module) is expected
        and module.bias is not None
        and not hasattr(type(module.weight), "__tensor_flatten__")  # quantized tensors, DTensor
        and is_untouched(module)
    )


class MixerMLP(nn.Module):
    """Two linear layers over the last axis, which holds the `num_features` values to mix."""

    def __init__(self, config: MixerConfig, num_features: int, mlp_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(num_features, mlp_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(mlp_dim, num_features)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the activation function to what `fc1` returned."""
        approximation = GELU_APPROXIMATIONS.get(type(self.activation_fn))
        is_seen = torch.is_grad_enabled() or not is_plain(self.fc1, nn.Linear) or not is_untouched(self.activation_fn)
        if approximation is None or is_seen:
            return self.activation_fn(hidden_states)
        # Nobody else needs these values, the largest of the network: a second buffer for them costs the CPU a tenth more
        return torch.ops.aten.gelu_(hidden_states, approximate=approximation)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activate(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return self.dropout(hidden_states)


def linear_over_tokens(linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply `linear` to the second axis of `hidden_states`, `(batch_size, num_features, hidden_size)`."""
    if not is_plain(linear, nn.Linear):
        return linear(hidden_states.transpose(1, 2)).transpose(1, 2)
    # The same product from the left, on the tensor as it lies: two transposed copies less
    bias = linear.bias.unsqueeze(-1)
    is_narrow = hidden_states.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if hidden_states.device.type == "cpu" and is_narrow:
        # On processors that do not compute in bfloat16 themselves, the other way takes seven times as long
        return torch.matmul(linear.weight, hidden_states).add_(bias)
    return torch.baddbmm(bias, linear.weight.expand(hidden_states.shape[0], -1, -1), hidden_states)


class MixerTokenMLP(MixerMLP):
    """The same over the second axis of three."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = linear_over_tokens(self.fc1, hidden_states)
        hidden_states = self.activate(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = linear_over_tokens(self.fc2, hidden_states)
        return self.dropout(hidden_states)


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
        return self.mix_channels(self.mix_tokens(hidden_states))
