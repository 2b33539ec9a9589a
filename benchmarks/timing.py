"""Timing in turns: everybody once a round, so that what else the machine does falls on all alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# A turn takes at least so many seconds.
_TURN = 0.5


class Contestant:
    """A contestant of a case in a process of its own, which computes only when it is its turn."""

    def __init__(self, case: str, who: str) -> None:
        command = [sys.executable, "-m", "benchmarks.turns", case, who]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = self._answer()
        self.first, self.shadows = float(told["first"]), [float(one) for one in told["shadows"]]

    def turn(self) -> float:
        """Return the seconds of one call, the mean over a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def started(case: str, names: Sequence[str]) -> Iterator[Mapping[str, Contestant]]:
    """Start the contestants of a case one after another, and end them all."""
    running: dict[str, Contestant] = {}
    try:
        for who in names:
            say(f"  {who}")
            running[who] = Contestant(case, who)
        yield running
    finally:
        for one in running.values():
            one.end()


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one call of each contestant in each round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, turn in contestants.items():
            times[name].append(turn())
        say(f"  round {number + 1} of {rounds}")
    return times


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call, the mean over a turn."""
    calls, begin = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - begin < _TURN:
        call()
        calls += 1
    return (time.perf_counter() - begin) / calls


def median(values: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return statistics.median(values)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over the rounds of how many times faster one was than the other."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def furthest(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the norm of the difference of two gradients, relative to that of the first."""
    left, right = (torch.cat([value.detach().reshape(-1).double() for value in each]) for each in (one, two))
    return float((left - right).norm() / left.norm())


def shadows(gradient: Sequence[Tensor]) -> list[float]:
    """Return the lengths of a gradient along fixed random directions: few numbers that tell two gradients apart."""
    flat, draw = (
        torch.cat([value.detach().reshape(-1).double() for value in gradient]),
        torch.Generator().manual_seed(2),
    )
    return [float(flat @ torch.randn(len(flat), generator=draw, dtype=torch.float64)) for _ in range(8)]


def apart(one: Sequence[float], two: Sequence[float]) -> float:
    """Return how far the shadows of two gradients are from one another, relative to those of the first."""
    return sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5 / sum(a * a for a in one) ** 0.5


def say(text: str) -> None:
    """Tell how a benchmark gets on."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
