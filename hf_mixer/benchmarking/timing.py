# SPDX-License-Identifier: Apache-2.0
"""Time several things against each other."""

import statistics
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch


Name = TypeVar("Name", bound=Hashable)

# Seconds that a step is repeated for in a round, beside a longer one
SHORTEST, LONGEST = 0.1, 2.0


def synchronize(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_interleaved(
    steps: dict[Name, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[Name, list[float]]:
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

    def seconds(step: Callable[[], Any], calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    once = {name: seconds(step, 1) for name, step in steps.items()}
    span = max(SHORTEST, min(LONGEST, max(once.values())))
    calls = {name: max(1, round(span / once[name])) for name in steps}
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for index in range(rounds):
        progress(f"round {index + 1} of {rounds}")
        for name, step in steps.items():
            times[name].append(seconds(step, calls[name]))
    return times


def spread(values: list[float]) -> float:
    """Interquartile range over median."""
    if len(values) < 2:
        return 0.0
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / median
