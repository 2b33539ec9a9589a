"""Output of the commands: answers on stdout, notes and progress on stderr, errors as sentences with an exit code."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

from metaforge.errors import INTERRUPTED, StorageError, as_metaforge_error, exit_code, printable
from metaforge.system.streams import note_stream

if TYPE_CHECKING:
    from rich.table import Table

P = ParamSpec("P")
T = TypeVar("T")


def handle_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Return a command that turns every exception into a message on stderr and the documented exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            code = exit_code(stop)
            print_note("Interrupted." if code == INTERRUPTED else "Terminated.")
            raise typer.Exit(code) from stop
        except BrokenPipeError as error:
            # The program that reads the answer, e.g. `head`, has closed the pipe.
            raise typer.Exit(0) from error
        except BaseException as error:
            _exit_with(error)

    return run


def _exit_with(error: BaseException) -> NoReturn:
    """Print an error and exit with its code."""
    if os.environ.get("METAFORGE_DEBUG") == "1":
        import traceback

        print_note("".join(traceback.format_exception(error)).rstrip())
    known = as_metaforge_error(error)
    if known is not None:
        print_note(f"Error: {known}")
        raise typer.Exit(known.exit_code) from error
    print_note(f"Unexpected error: {type(error).__name__}: {printable(str(error))}")
    print_note("  remedy: set METAFORGE_DEBUG=1 to see the traceback, and please report it")
    raise typer.Exit(1) from error


def flush_streams() -> None:
    """Flush stdout and stderr; a stream that is closed, or whose reader has closed the pipe, is no error.

    Raises:
        StorageError: Stdout cannot be written, for example because it is a file on a full disk.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            # Without this the interpreter would flush again when it exits, and print an error.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                raise_unless_closed(error)


def raise_unless_closed(error: OSError | ValueError) -> None:
    """Raise `StorageError` for an error in writing an answer, except that a closed stream drops it silently."""
    if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EBADF):
        raise StorageError(
            f"The answer cannot be written to stdout: {error.strerror}.", remedy="free space, or print it elsewhere"
        ) from error


def print_note(text: str) -> None:
    """Print a text on stderr, as far as stderr can take it; control characters become spaces."""
    print(_printable_lines(text), file=note_stream())


def print_answer(text: str) -> None:
    """Print a text on stdout, control characters as spaces.

    Raises `StorageError` if it cannot be written, but not if stdout is closed.
    """
    try:
        # The one place that prints on stdout: everything else hands its text over, so that a closed pipe ends quietly.
        print(_printable_lines(text))  # noqa: T201
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise_unless_closed(error)


def _printable_lines(text: str) -> str:
    """Return lines of text with a space in place of each control character: names and files are untrusted."""
    return "\n".join(printable(line) for line in text.split("\n"))


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; control characters are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    # JSON itself escapes only the control characters below 32.
    print_answer("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout: fitted to a terminal, at full width to anything else."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        # Text, so that rich does not interpret markup in the summary of a plugin.
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_rich_table(table)


def print_rich_table(table: Table) -> None:
    """Print a table of rich on stdout: fitted to a terminal, at full width to anything else."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=10_000, file=io.StringIO())
    console.print(table)
    print_answer("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()))  # type: ignore[attr-defined]


@contextmanager
def progress_display(label: str, *, show: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (items done, items in all) that shows progress on stderr, or None unless `show`.

    On a terminal it draws a bar, elsewhere it prints a line for every quarter.
    """
    if not show:
        yield None
        return
    if not sys.stderr.isatty():
        printed_quarters = 0

        def print_quarter(done: int, total: int) -> None:
            nonlocal printed_quarters
            if 4 * done // total > printed_quarters:
                printed_quarters = 4 * done // total
                print_note(f"{label}: {done}/{total}")

        yield print_quarter
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
