"""The command line: one Typer application.

A command imports what it works with inside its function, so that `--help` imports neither torch nor pydantic.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from metaforge import __version__
from metaforge.cli import (
    check,
    checkpoints,
    config,
    data,
    describe,
    evaluate,
    features,
    list_plugins,
    new,
    schema,
    train,
)
from metaforge.cli.output import flush_streams, print_answer, print_note, raise_unless_closed
from metaforge.errors import StorageError
from metaforge.system.streams import best_effort_stderr, open_standard_streams

app = typer.Typer(
    name="metaforge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin.",
    epilog="Exit codes: 0 ok, 1 unexpected error, 2 usage or configuration, 3 data, 4 plugin, 5 checkpoint, "
    "6 diverged, 7 run in use, 8 storage, 9 process lost, 129 hung up, 130 interrupted, 143 terminated.",
)
app.command("list-plugins")(list_plugins.list_plugins)
app.command("describe")(describe.describe)
app.command("new")(new.new)
app.command("schema")(schema.schema)
app.command("check")(check.check)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("features")(features.features)
app.command("config")(config.config)
app.add_typer(checkpoints.app, name="ckpt")
app.add_typer(data.app, name="data")


def _print_version(requested: bool) -> None:
    if requested:
        print_answer(f"metaforge {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin."""


def main() -> None:
    """Run the command line and exit with one of the codes that `metaforge --help` lists."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # On a console that lacks a character, print a question mark instead of raising an error.
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="replace")
    with best_effort_stderr():
        code = _run_app()
    # Outside the block, so that what the original stderr could not take is dropped before the interpreter exits.
    lost = _lost_answer(flush_streams)
    code = code or lost
    # Imported only by commands that compute.
    processes = sys.modules.get("metaforge.engine.processes")
    if processes is not None and processes.under_torchrun():
        processes.exit_now(code)
    raise SystemExit(code)


def _run_app() -> str | int | None:
    """Run the command and return the `code` of the `SystemExit` that ends it."""
    try:
        app()
    except SystemExit as stop:
        # Typer exits with 1 where the program that reads the help, e.g. `head`, has closed the pipe.
        return 0 if isinstance(stop.__context__, BrokenPipeError) else stop.code
    except OSError as error:
        # Help is printed by Typer, which lets this pass.
        return _lost_answer(partial(raise_unless_closed, error))
    return 0


def _lost_answer(function: Callable[[], None]) -> int:
    """Call a function that writes to stdout; return 0, or the exit code of an answer that cannot be written."""
    try:
        function()
    except StorageError as error:
        print_note(f"Error: {error}")
        return error.exit_code
    return 0
