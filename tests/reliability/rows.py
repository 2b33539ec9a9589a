"""What a row of the reliability campaign is, the workspace in which it runs, and the record that it leaves.

A row is a function in any module of this package:

    @row(11, "hostile archives", goal="0 bytes outside the target, at most 1 s each to refuse")
    def hostile_archives(workspace: Workspace, *, count: int = 25) -> Measured:
        outcomes = [attempt(workspace.folder, index) for index in workspace.indices(count)]
        return Measured(passed=len(outcomes) == count and all(outcomes), text="25 of 25 refused", numbers={...})

A row writes only below `workspace.folder`, which is empty when it starts. It takes its counts as keyword arguments, so
that the tests can call the same function with small counts. It loops over `workspace.indices(count)`, which ends early
when the time is over; a row that has not tried all of its cases does not pass. The campaign writes
`row-<number>.json` with the row, test, goal, measured text and numbers, passed, seconds, machine and command.
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
    """The result of a row: whether it reaches its goal, one sentence with numbers, and further numbers."""

    passed: bool
    text: str
    numbers: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Workspace:
    """The folder in which a row works, and the time at which it must stop (`deadline`, of `time.monotonic`)."""

    folder: Path
    deadline: float = math.inf

    def indices(self, count: int) -> Iterator[int]:
        """Yield 0 to `count` - 1, and stop early when the deadline has passed."""
        for index in range(count):
            if time.monotonic() > self.deadline:
                return
            yield index

    def subfolder(self, name: str) -> Path:
        """Return a new folder of that name."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path


@dataclass(frozen=True)
class Row:
    """One promise: its number in the table, what is tried, the goal, and the function that tries it."""

    number: int
    test: str
    goal: str
    run: Callable[[Workspace], Measured] = field(repr=False)


ROWS: dict[int, Row] = {}


def row(number: int, test: str, *, goal: str) -> Callable[[F], F]:
    """Register a function as a row of the campaign; the function itself stays unchanged."""

    def register(function: F) -> F:
        if number in ROWS:
            raise ValueError(f"two functions are row {number}: {ROWS[number].run} and {function}")
        ROWS[number] = Row(number, test, goal, function)
        return function

    return register


def record_path(number: int) -> Path:
    """Return the path of the record of a row."""
    return RECORDS / f"row-{number:02d}.json"


def run_row(one: Row, workspace: Workspace, command: str) -> dict[str, Any]:
    """Run a row and return its record; a row that raises has not passed."""
    start = time.monotonic()
    try:
        measured = one.run(workspace)
    except Exception as error:
        measured = Measured(False, f"{type(error).__name__}: {error}")
    return {
        "row": one.number,
        "test": one.test,
        "goal": one.goal,
        "measured": {"text": measured.text, "numbers": dict(measured.numbers)},
        "passed": measured.passed,
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
        "command": command,
    }


def machine() -> dict[str, Any]:
    """Return the facts about the machine that matter for the numbers of a record."""
    names = ("processor", "cores", "platform", "python", "torch", "threads")
    return {name: value for name, value in facts().items() if name in names}


def read_records() -> list[dict[str, Any]]:
    """Return all records, in the order of their rows."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(RECORDS.glob("row-*.json"))]
