"""Timing in turns: every contestant is timed once per round, so that other load on the machine affects all alike."""

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

# The least number of seconds of a turn.
_TURN = 0.5
# How many random directions a gradient is projected on.
_DIRECTIONS = 8


class Contestant:
    """One implementation of a case, in a process that computes only in its own turns.

    `first` holds the seconds of its first call, `projections` those of its gradient.
    """

    def __init__(self, group: str, case: str, name: str) -> None:
        command = [sys.executable, "-m", "benchmarks.contestant_process", group, case, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self._read_answer()
        self.first, self.projections = float(answer["first"]), [float(value) for value in answer["projections"]]

    def turn(self) -> float:
        """Return the seconds of one call: the mean over a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read_answer())

    def end(self) -> None:
        """End the process, and close its pipes."""
        with self._process:
            self._process.terminate()

    def _read_answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def started_contestants(group: str, case: str, names: Sequence[str]) -> Iterator[Mapping[str, Contestant]]:
    """Start the contestants of a group's case one after another, and end all of them after the block."""
    running: dict[str, Contestant] = {}
    try:
        for name in names:
            log(f"  {name}")
            running[name] = Contestant(group, case, name)
        yield running
    finally:
        for contestant in running.values():
            contestant.end()


def time_in_turns(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return for each name the seconds of one call in each round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
        log(f"  round {number + 1} of {rounds}")
    return times


def seconds_per_call(call: Callable[[], object]) -> float:
    """Return the seconds of one call: the mean over a turn."""
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < _TURN:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def median(values: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return statistics.median(values)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def relative_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the norm of the difference of two gradients, relative to the norm of the first."""
    left, right = (torch.cat([value.detach().reshape(-1).double() for value in each]) for each in (first, second))
    return float((left - right).norm() / left.norm())


def projections(gradient: Sequence[Tensor]) -> list[float]:
    """Return the scalar products of a gradient with fixed random vectors.

    Different gradients have different projections, and these few numbers are cheap to send between processes.
    """
    flat = torch.cat([value.detach().reshape(-1).double() for value in gradient])
    generator = torch.Generator().manual_seed(2)
    return [float(flat @ torch.randn(len(flat), generator=generator, dtype=torch.float64)) for _ in range(_DIRECTIONS)]


def projection_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the norm of the difference of two lists of projections, relative to the norm of the first."""
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5 / sum(a * a for a in first) ** 0.5


def log(text: str) -> None:
    """Print the progress of a benchmark on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
