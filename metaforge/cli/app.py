"""The command line: one typer application; a command imports its worker inside its body, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Annotated

import typer

from metaforge import __version__
from metaforge.cli import checking, ckpt, data, plugins, runs, scaffolding, schemas
from metaforge.cli.output import flush_quietly, put

app = typer.Typer(
    name="metaforge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin.",
    epilog="Exit codes: 0 ok, 1 unexpected, 2 usage or configuration, 3 data, 4 plugin, 5 checkpoint, 6 diverged, "
    "7 run in use, 8 storage, 9 worker lost, 130 interrupted, 143 terminated.",
)
app.command("list-plugins")(plugins.list_plugins)
app.command("describe")(plugins.describe)
app.command("new")(scaffolding.new)
app.command("schema")(schemas.schema)
app.command("check")(checking.check)
app.command("train")(runs.train)
app.command("evaluate")(runs.evaluate)
app.command("config")(runs.config)
app.add_typer(ckpt.app, name="ckpt")
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        put(f"metaforge {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin."""


def main() -> None:
    """Run the command line; it ends with the exit codes that `metaforge --help` lists."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that lacks a character gets a substitute, not a traceback.
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as ending:
        # Only a command that computes has imported this.
        distributed = sys.modules.get("metaforge.distributed")
        if distributed is not None and distributed.launched():
            flush_quietly()
            distributed.leave(ending.code)
        raise
    finally:
        flush_quietly()
