# SPDX-License-Identifier: Apache-2.0
"""How many threads compute on a CPU where the user does not say it."""

import os

import joblib
import torch

from .configuration_mixer import MixerConfig
from .flops import estimate_flops


# Operations of one layer on a batch, forward, that keep a thread busy. Two threads compute a layer of 85 million 1.4 times
# (training) or 1.5 times (inference) as fast as one, and a layer of 40 million 1.2 or 1.3 times (two Xeon cores, float32).
# Against that stands that threads wait for each other after every product: where another program takes one of the two
# cores, two threads were three to five times slower than one.
FLOPS_PER_THREAD = 50_000_000
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """
    Return the CPU cores that this process may use, at least 1: those that its affinity and the quota of its container leave,
    shared with the processes that torchrun or Accelerate started beside it.
    """
    return max(1, joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def useful_threads(config: MixerConfig, batch_size: int) -> int:
    """Return how many threads have enough to do in each layer of a model, for batches of `batch_size` images."""
    flops_per_layer = estimate_flops(config) * batch_size // config.num_hidden_layers
    return max(1, flops_per_layer // FLOPS_PER_THREAD)


def limit_threads(config: MixerConfig | None = None, batch_size: int = 1) -> None:
    """
    Let torch compute with no more threads than this process has cores and, where the model and its batches are known, than
    have enough to do. Without a limit, torch takes all physical cores of the machine.

    The number follows from the arguments and the machine alone, so that a run that is resumed adds up in the same order.
    `OMP_NUM_THREADS` and `MKL_NUM_THREADS` stay what they are, whether the user or a launcher sets them.

    Args:
        config (`MixerConfig`, *optional*):
            The model that computes on one batch at a time.
        batch_size (`int`, *optional*, defaults to 1):
            Images per batch.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    limits = [torch.get_num_threads(), available_cores()]
    if config is not None:
        limits.append(useful_threads(config, batch_size))
    torch.set_num_threads(min(limits))
