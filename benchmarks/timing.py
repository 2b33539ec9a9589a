"""Timing in turns: everybody once a round, so that what else the machine does falls on all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.5
) -> dict[str, list[float]]:
    """Return the seconds of one call of each contestant in each round; a turn takes `least` seconds at least."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, call in contestants.items():
            calls, begin = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - begin < least:
                call()
                calls += 1
            times[name].append((time.perf_counter() - begin) / calls)
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)  # noqa: T201
    return times


def median(values: list[float]) -> float:
    """Return the median of the rounds."""
    return statistics.median(values)


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median over the rounds of how many times faster one was than the other."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def furthest(one: list[Tensor], two: list[Tensor]) -> float:
    """Return the norm of the difference of two gradients, relative to that of the first."""
    left, right = (torch.cat([value.detach().reshape(-1).double() for value in each]) for each in (one, two))
    return float((left - right).norm() / left.norm())
