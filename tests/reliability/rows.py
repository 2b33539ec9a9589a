"""What a row of the reliability campaign is, where it works, and the record that it leaves.

A row is a function of any module beside this one:

    @row(11, "hostile archives", goal="0 bytes outside the target, at most 1 s each to refuse")
    def hostile_archives(room: Room, *, count: int = 25) -> Measured:
        outcomes = [attempt(room.folder, index) for index in room.counted(count)]
        return Measured(passed=len(outcomes) == count and all(outcomes), text="25 of 25 refused", numbers={...})

It writes below `room.folder`, which is its own and empty; it takes counts by name, so that tests call the same function
with small ones; and loops over `room.counted(count)`, which ends early when time is up: a row that did not come to all
of its cases has not passed. The campaign records `row-<number>.json`: row, test, goal, measured (text, numbers),
passed, seconds, machine, command.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from metaforge.system.machine import facts

F = TypeVar("F", bound=Callable[..., "Measured"])

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records" / "reliability"


class Measured(NamedTuple):
    """What came of a row: a sentence with figures, the figures, and whether they reach the goal."""

    passed: bool
    text: str
    numbers: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Room:
    """Where a row works, and until when (`deadline` is one of `time.monotonic`)."""

    folder: Path
    deadline: float = math.inf

    def counted(self, count: int) -> Iterator[int]:
        """Yield 0 to `count` - 1, and end early when time is up."""
        for index in range(count):
            if time.monotonic() > self.deadline:
                return
            yield index

    def sub(self, name: str) -> Path:
        """Return a new folder of that name."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path


@dataclass(frozen=True)
class Row:
    """One promise: its number in the table, what is tried, what must come of it, and the function that tries it."""

    number: int
    test: str
    goal: str
    run: Callable[[Room], Measured] = field(repr=False)


ROWS: dict[int, Row] = {}


def row(number: int, test: str, *, goal: str) -> Callable[[F], F]:
    """Make a function a row of the campaign; called alone it is what it was."""

    def register(function: F) -> F:
        if number in ROWS:
            raise ValueError(f"two functions are row {number}: {ROWS[number].run} and {function}")
        ROWS[number] = Row(number, test, goal, function)
        return function

    return register


def record_path(number: int) -> Path:
    """Return where the record of a row lies."""
    return RECORDS / f"row-{number:02d}.json"


def carried_out(one: Row, room: Room, command: str) -> dict[str, Any]:
    """Carry out a row and return its record; what it raises is a row that has not passed."""
    begun = time.monotonic()
    try:
        measured = one.run(room)
    except Exception as error:
        measured = Measured(False, f"{type(error).__name__}: {error}")
    return {
        "row": one.number,
        "test": one.test,
        "goal": one.goal,
        "measured": {"text": measured.text, "numbers": dict(measured.numbers)},
        "passed": measured.passed,
        "seconds": round(time.monotonic() - begun, 1),
        "machine": machine(),
        "command": command,
    }


def machine() -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine."""
    told = ("processor", "cores", "platform", "python", "torch", "threads")
    return {name: value for name, value in facts().items() if name in told}


def read_records() -> list[dict[str, Any]]:
    """Return the records that there are, in the order of their rows."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(RECORDS.glob("row-*.json"))]
