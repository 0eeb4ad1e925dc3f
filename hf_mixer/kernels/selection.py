# SPDX-License-Identifier: Apache-2.0
"""Whether a fused operator computes the same as a layer's own code on this device, and is faster."""

import logging
import operator
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ..benchmarking.timing import time_interleaved
from ..configuration_mixer import MixerConfig
from ..layers_mixer import MixerLayer
from . import OWN, applies, has_tanh, mix, norm_and_mlp


logger = logging.getLogger(__name__)

# What it takes to be worth another code path, and how much rounding may differ, in units of the type's last place
SPEEDUP = 1.05
TOLERANCE = 16
# A few images keep only some of the multiprocessors busy, many keep all of them; of large images fewer are many
FEW_IMAGES, MANY_TOKENS = 1, 16384
# What was measured in this program, for each kind of input
ANSWERS: dict[tuple, bool] = {}


def measure_layer(axis: str, layer: Any, hidden_states: torch.Tensor) -> bool:
    """Whether the fused operator is the faster one for this layer and these tokens; measured once for each kind."""
    device_type = hidden_states.device.type
    batch_size, num_patches, hidden_size = hidden_states.shape[0], *map(operator.index, hidden_states.shape[1:])
    _, mlp = norm_and_mlp(axis, layer)
    return _is_faster_constant(
        axis,
        str(hidden_states.device),
        hidden_states.dtype,
        mlp.fc1.weight.dtype,
        torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None,
        FEW_IMAGES if batch_size < 8 else max(FEW_IMAGES, MANY_TOKENS // num_patches),
        num_patches,
        hidden_size,
        mlp.fc1.out_features,
        has_tanh(mlp),
        torch.is_grad_enabled(),
    )


# In a graph that is being captured, the answer is a constant
@torch.compiler.assume_constant_result
def _is_faster_constant(*kind) -> bool:
    if kind not in ANSWERS:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False  # nothing can be measured now
        ANSWERS[kind] = is_faster(mix, *kind)
    return ANSWERS[kind]


def is_faster(
    fused: Callable,
    axis: str,
    device: str,
    input_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    autocast_dtype: torch.dtype | None,
    batch_size: int,
    num_patches: int,
    hidden_size: int,
    mlp_dim: int,
    tanh: bool,
    training: bool,
) -> bool:
    """
    Compare a fused operator with the code of `MixerLayer.mix_tokens` or `MixerLayer.mix_channels` on random tokens: first
    the results, then the time. The state of the random number generators stays as it is.

    Args:
        fused (`Callable`):
            Takes the axis, a layer and the tokens.
        axis (`str`):
            `"token"` or `"channel"`: what is mixed.
        device (`str`):
            Where to measure.
        input_dtype (`torch.dtype`), weight_dtype (`torch.dtype`), autocast_dtype (`torch.dtype`, *optional*):
            The types of the tokens and of the weights, and the one of autocast where it is on.
        batch_size (`int`), num_patches (`int`), hidden_size (`int`), mlp_dim (`int`):
            The sizes.
        tanh (`bool`):
            Whether GELU is the approximation with tanh.
        training (`bool`):
            Whether to measure the backward pass as well.

    Returns:
        `bool`: whether the results agree within the rounding of the type and the operator takes less time. Where they do
        not agree, or the operator fails, a warning says so.
    """
    target = torch.device(device)

    def check_and_mix(layer: MixerLayer, hidden_states: torch.Tensor) -> torch.Tensor:
        applies(axis, layer, hidden_states)  # takes its time as well, before each call
        return fused(axis, layer, hidden_states)

    def run(method: Callable) -> list[torch.Tensor]:
        with torch.autocast(target.type, autocast_dtype) if autocast_dtype else nullcontext():
            output = method(layer, inputs)
        if not training:
            return [output]
        return [output, *torch.autograd.grad(output, [inputs, *parameters], torch.ones_like(output))]

    devices = [target] if target.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.set_grad_enabled(training),
        # Not those of gradient checkpointing, which count and replace what is saved for the backward pass
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        try:
            config = MixerConfig(
                image_size=(num_patches, 1),
                patch_size=1,
                hidden_size=hidden_size,
                token_mlp_dim=mlp_dim if axis == "token" else 1,
                channel_mlp_dim=mlp_dim if axis == "channel" else 1,
                hidden_act="gelu_pytorch_tanh" if tanh else "gelu",
            )
            layer = MixerLayer(config, layer_idx=0).to(target, weight_dtype)
            parameters = [parameter for module in norm_and_mlp(axis, layer) for parameter in module.parameters()]
            inputs = torch.randn(batch_size, num_patches, hidden_size, device=target, dtype=input_dtype)
            inputs.requires_grad_(training)
            steps = {"own": lambda: run(OWN[axis]), "fused": lambda: run(check_and_mix)}
            eps = torch.finfo(autocast_dtype or weight_dtype).eps
            for own, other in zip(*(step() for step in steps.values())):
                own, other = own.detach().float(), other.detach().float()
                difference = float((own - other).abs().max())
                if not difference <= TOLERANCE * eps * float(own.abs().max()):
                    logger.warning(
                        "Mixing the %ss of %s patches by %s channels goes without the fused kernel on %s: the results would "
                        "differ by %.2g.",
                        *(axis, num_patches, hidden_size, device, difference),
                    )
                    return False
            times = list(time_interleaved(steps, 5, target, minimum=0.01))
        except Exception as error:  # whatever a compiler or a driver may raise: the layer's own code still runs
            logger.warning("Mixing %ss goes without the fused kernel on %s, where it fails: %r", axis, device, error)
            return False
    return statistics.median(seconds["own"] / seconds["fused"] for seconds in times) >= SPEEDUP
