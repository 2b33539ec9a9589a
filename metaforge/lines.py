"""Text files that hooks write, one row per line: begun with a run, and taken up again where a resumed one continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metaforge.errors import ConfigError
from metaforge.storage import storage, write_atomically


def begin_lines(path: Path, *, start: int, step_of: Callable[[str], int], heading: Sequence[str] = ()) -> None:
    """Begin a file with its heading, keeping of an older one what a run that continues after step `start` has done.

    `step_of` returns the step of a line. With `start` 0 nothing is kept; otherwise the lines up to and including that
    step are, but not one that was cut short. Raises `ConfigError` where the older file is not what it should be.
    """
    kept = _kept(path, start, step_of, heading) if start and path.exists() else []
    write_atomically(path, "".join(f"{line}\n" for line in [*heading, *kept]))


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add whole lines at the end of a file; when this returns a reader sees them."""
    with storage(path), path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def _kept(path: Path, start: int, step_of: Callable[[str], int], heading: Sequence[str]) -> list[str]:
    try:
        whole = path.read_bytes().decode().split("\n")[:-1]
        if whole[: len(heading)] != list(heading):
            raise ValueError(f"it does not begin with {', '.join(heading)}")
        return [line for line in whole[len(heading) :] if step_of(line) <= start]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path.name} cannot be continued: {type(error).__name__}: {error}.",
            where=str(path),
            remedy="move it away: the run then begins a new one",
        ) from error
