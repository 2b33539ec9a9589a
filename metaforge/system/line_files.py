"""Text files with one row per line, such as logs: started with a run, continued when the run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metaforge.errors import ConfigError
from metaforge.system.files import write_atomically, write_errors


def begin_lines(path: Path, *, start: int, step_of: Callable[[str], int], heading: Sequence[str] = ()) -> None:
    """Create a file of lines for a run that starts, or shorten an existing one for a run that is resumed.

    A run that starts (`start` is 0) begins a new file with the heading alone; an existing file is replaced. A run that
    is resumed after step `start` keeps the lines up to and including that step: the later ones will be written again.
    An incomplete last line is dropped.

    Args:
        path: The file; its folder exists.
        start: The step after which the run continues; 0 for a new run.
        step_of: Returns the step of a line, without its newline. It may raise `ValueError`, `LookupError` or
            `TypeError` for a line that it cannot read.
        heading: The first lines of the file, such as the names of columns.

    Raises:
        ConfigError: The existing file does not begin with the heading, or has an unreadable line before step `start`.
        StorageError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from metaforge.authoring import append_lines, begin_lines
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "losses.csv"
        >>> def begin(start):
        ...     begin_lines(path, start=start, step_of=lambda line: int(line.split(",")[0]), heading=["step,loss"])
        >>> begin(start=0)
        >>> append_lines(path, ["1,0.9", "2,0.7", "3,0.6"])
        >>> begin(start=2)
        >>> path.read_text().split()
        ['step,loss', '1,0.9', '2,0.7']
        >>> folder.cleanup()
    """
    kept, damaged = kept_lines(path, start, step_of, heading) if start and path.exists() else ([], [])
    if damaged:
        raise ConfigError(
            f"{path.name} cannot be continued: {damaged[0]}.",
            where=str(path),
            remedy="move the file away: the run then begins a new one",
        )
    write_lines(path, [*heading, *kept])


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a file, which is created if it does not exist.

    The file is closed before the function returns, so that a reader sees the new lines at once.

    Args:
        path: The file; its folder exists.
        lines: The lines, each without its newline.

    Raises:
        StorageError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from metaforge.authoring import append_lines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_lines(Path(folder) / "steps.txt", ["step 1"])
        ...     append_lines(Path(folder) / "steps.txt", ["step 2", "step 3"])
        ...     (Path(folder) / "steps.txt").read_text().splitlines()
        ['step 1', 'step 2', 'step 3']
    """
    data = _joined(lines)
    with write_errors(path, len(data)), path.open("ab") as file:
        file.write(data)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file of these lines atomically, in place of an existing one."""
    write_atomically(path, _joined(lines))


def kept_lines(
    path: Path, start: int, step_of: Callable[[str], int], heading: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return the lines of a file that a run resumed after step `start` keeps, and a description of each damaged line.

    Args:
        path: An existing file.
        start: The step after which the run continues.
        step_of: Returns the step of a line; see `begin_lines`.
        heading: The first lines that the file must have; they are not among the lines returned.

    Returns:
        The lines up to and including step `start`, and one description for each unreadable line before that step.
        Lines after that step, and an incomplete last line, are ignored.
    """
    kept: list[str] = []
    damaged: list[str] = []
    last_step, lines = 0, path.read_bytes().split(b"\n")[:-1]
    if lines[: len(heading)] != [line.encode() for line in heading]:
        return [], [f"it does not begin with {', '.join(heading)}"]
    for number, line in enumerate(lines[len(heading) :], start=len(heading) + 1):
        try:
            text = line.decode()
            step = step_of(text)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            if last_step < start:
                damaged.append(f"line {number}: {type(error).__name__}: {error}"[:200])
            continue
        if step > start:
            break
        kept.append(text)
        last_step = step
    return kept, damaged


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
