# SPDX-License-Identifier: Apache-2.0
"""Time several things against each other."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch


Name = TypeVar("Name", bound=Hashable)

# Seconds for which a short step is repeated at most, to cover as much time as a long one beside it
LONGEST = 2.0


def synchronize(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_interleaved(
    steps: dict[Name, Callable[[], Any]], rounds: int, device: torch.device, minimum: float = 0.1
) -> Iterator[dict[Name, float]]:
    """
    Time every step in every round, so that whatever else the machine does meets all of them alike. A step that is shorter
    than the longest is repeated to take as long, up to 2 seconds.

    Args:
        steps (`dict[Any, Callable]`):
            What to time. Each has run before.
        rounds (`int`):
            Number of rounds.
        device (`torch.device`):
            Where they run.
        minimum (`float`, *optional*, defaults to 0.1):
            Seconds that a step takes in a round at least, by being repeated.

    Yields:
        `dict[Any, float]`: the seconds of one call of each step, round after round.
    """

    def seconds(step: Callable[[], Any], calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    once = {name: seconds(step, 1) for name, step in steps.items()}
    span = max(minimum, min(LONGEST, max(once.values())))
    calls = {name: max(1, round(span / once[name])) for name in steps}
    for _ in range(rounds):
        yield {name: seconds(step, calls[name]) for name, step in steps.items()}


def spread(values: list[float]) -> float:
    """Interquartile range over median."""
    if len(values) < 2:
        return 0.0
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / median
