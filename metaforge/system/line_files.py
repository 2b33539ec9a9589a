"""Text files that hooks write, one row per line: begun with a run, and taken up again where a resumed one continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metaforge.errors import ConfigError
from metaforge.system.files import write_atomically, write_errors


def begin_lines(path: Path, *, start: int, step_of: Callable[[str], int], heading: Sequence[str] = ()) -> None:
    """Begin a file with its heading, keeping of an older one what a run that continues after step `start` has done.

    `step_of` returns the step of a line. With `start` 0 nothing is kept; otherwise the lines up to and including that
    step are, but not one that was cut short. Raises `ConfigError` where the older file is not what it should be.
    """
    kept, damaged = kept_lines(path, start, step_of, heading) if start and path.exists() else ([], [])
    if damaged:
        raise ConfigError(
            f"{path.name} cannot be continued: {damaged[0]}.",
            where=str(path),
            remedy="move it away: the run then begins a new one",
        )
    write_lines(path, [*heading, *kept])


def kept_lines(
    path: Path, start: int, step_of: Callable[[str], int], heading: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return a file's lines up to and including a step, and what is wrong with each that cannot be read.

    What comes after that step is of no account, and neither is a last line that was cut short.
    """
    kept: list[str] = []
    damaged: list[str] = []
    last, lines = 0, path.read_bytes().split(b"\n")[:-1]
    if lines[: len(heading)] != [line.encode() for line in heading]:
        return [], [f"it does not begin with {', '.join(heading)}"]
    for number, line in enumerate(lines[len(heading) :], start=len(heading) + 1):
        try:
            text = line.decode()
            step = step_of(text)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            damaged += [f"line {number}: {type(error).__name__}: {error}"[:200]] if last < start else []
            continue
        if step > start:
            break
        kept.append(text)
        last = step
    return kept, damaged


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add whole lines at the end of a file; when this returns a reader sees them."""
    data = _joined(lines)
    with write_errors(path, len(data)), path.open("ab") as file:
        file.write(data)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file of these lines, atomically."""
    write_atomically(path, _joined(lines))


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
