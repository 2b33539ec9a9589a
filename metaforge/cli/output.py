"""What every command does alike: data on stdout, words for people on stderr, errors as sentences with an exit code."""

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

from metaforge.errors import MetaForgeError, StorageError, printable

if TYPE_CHECKING:
    from rich.table import Table

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPTED = 130

_STORAGE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST})


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Return a command that ends in a sentence on stderr and the documented exit code, whatever happens in it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            code = getattr(stop, "exit_code", INTERRUPTED)
            say("Interrupted." if code == INTERRUPTED else "Terminated.")
            raise typer.Exit(code) from stop
        except BrokenPipeError as gone:
            # Whoever read the answer (`head`, say) has had enough.
            raise typer.Exit(0) from gone
        except Exception as error:
            _end(error)

    return run


def _end(error: Exception) -> NoReturn:
    if os.environ.get("METAFORGE_DEBUG") == "1":
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, OSError) and error.errno in _STORAGE and error.filename is not None:
        said = f"{error.filename} cannot be written or read: {error.strerror}."
        error = StorageError(said, remedy="free space, correct the permissions, or choose another folder")
    if isinstance(error, MetaForgeError):
        say(f"Error: {error}")
        raise typer.Exit(error.exit_code) from error
    say(f"Unexpected error: {type(error).__name__}: {printable(str(error))}")
    say("  remedy: METAFORGE_DEBUG=1 shows the trace; please report it")
    raise typer.Exit(1) from error


def flush_quietly() -> None:
    """Write out what is still to be written; a reader who is gone is no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            # The interpreter would flush once more at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Print for a person, on stderr; where nobody reads, the work goes on."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr)  # noqa: T201


def put(text: str) -> None:
    """Print an answer, on stdout."""
    print(text)  # noqa: T201


def put_json(value: Any) -> None:
    """Print an answer for a program, on stdout."""
    put(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def put_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout: fitted to a terminal, in full elsewhere."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        # Text, not markup: a plugin's summary may contain anything.
        table.add_row(*(Text(printable(cell)) for cell in row))
    put_rich(table)


def put_rich(table: Table) -> None:
    """Print a table that is made already, on stdout: fitted to a terminal, in full elsewhere."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=10_000, file=io.StringIO())
    console.print(table)
    put("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()))  # type: ignore[attr-defined]


@contextmanager
def counting(what: str, *, show: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show on stderr how many things are done: a bar on a terminal, a plain line now and then elsewhere."""
    if not show:
        yield None
        return
    if not sys.stderr.isatty():
        shown = [0]

        def line(done: int, total: int) -> None:
            if 4 * done // total > shown[0]:
                shown[0] = 4 * done // total
                say(f"{what}: {done}/{total}")

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
