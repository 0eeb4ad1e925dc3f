# SPDX-License-Identifier: Apache-2.0
"""Time several things against each other."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def time_interleaved(
    steps: dict[Any, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[Any, list[float]]:
    """
    Time every step in every round, so that whatever else the machine does affects all of them alike. A step that is
    shorter than the longest is repeated to take as long, but at least 0.1 and up to 2 seconds.

    Args:
        steps (`dict[Any, Callable]`):
            What to time. Each has run before.
        rounds (`int`):
            Number of rounds.
        device (`torch.device`):
            Where they run.
        progress (`Callable[[str], Any]`, *optional*):
            Is told which round begins.

    Returns:
        `dict[Any, list[float]]`: the seconds of one call of each step, one value per round.
    """

    def synchronize():
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    def seconds(step: Callable[[], Any], calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize()
        return (time.perf_counter() - start) / calls

    once = {name: seconds(step, 1) for name, step in steps.items()}
    span = max(0.1, min(2.0, max(once.values())))
    calls = {name: max(1, round(span / once[name])) for name in steps}
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for index in range(rounds):
        progress(f"round {index + 1} of {rounds}")
        for name, step in steps.items():
            times[name].append(seconds(step, calls[name]))
    return times


def spread(values: list[float]) -> float:
    """Interquartile range over median."""
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
    return float((third - first) / median)
