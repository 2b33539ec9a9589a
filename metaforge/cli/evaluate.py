"""`metaforge evaluate`: the scores of a trained run on test tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli import options
from metaforge.cli.options import scanned
from metaforge.cli.output import guarded, put, put_json, say
from metaforge.errors import printable

if TYPE_CHECKING:
    from metaforge.registry.registry import Registry
    from metaforge.runs.checkpoint import Which


@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    ways: Annotated[int | None, typer.Option("--ways", min=1, help="Classes in a task.")] = None,
    shots: Annotated[str | None, typer.Option("--shots", help="Support examples per class, e.g. 1,5,10.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="Adaptation steps, e.g. 0,1,5.")] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="Tasks to evaluate on.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of the data set.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the tasks.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best (in validation), or a step.")
    ] = "latest",
    device: options.Device = None,
    no_progress: options.NoProgress = False,
    json: options.AsJson = False,
) -> None:
    """Evaluate a trained run on tasks that it has never seen; figures and pictures go into its folder."""
    from metaforge.errors import ConfigError

    chosen = {
        "ways": ways,
        "shots": options.numbers("--shots", shots),
        "steps": options.numbers("--steps", steps),
        "tasks": tasks,
        "split": split,
        "seed": seed,
    }
    if not run.is_dir():
        raise ConfigError(f"There is no run folder {run}.", remedy="`metaforge train` makes one and prints its path")
    which = _which(checkpoint)
    from metaforge.engine import processes

    if processes.rank() > 0:
        # Rank 0 does it alone.
        return
    found = evaluate_folder(run, scanned(), device=device, which=which, progress=not no_progress, **chosen)
    if json:
        put_json(found)
    else:
        put_evaluation(found)


def _which(text: str) -> Which:
    """Return which checkpoint a flag means."""
    from metaforge.errors import ConfigError

    if text in ("latest", "best"):
        return "best" if text == "best" else "latest"
    if not (text.isdecimal() and text.isascii() and len(text) < 20):
        raise ConfigError(f"--checkpoint is {text!r}, but should be latest, best or a step.")
    return int(text)


def evaluate_folder(
    folder: Path,
    registry: Registry,
    *,
    progress: bool,
    device: str | None = None,
    which: Which = "latest",
    **chosen: Any,
) -> dict[str, Any]:
    """Return the evaluation of the run in a folder, with progress on stderr."""
    from metaforge.cli.output import counting
    from metaforge.runs.run import load
    from metaforge.system.signals import stop_requests

    with stop_requests(), counting("evaluating", show=progress) as tell:
        run = load(folder, registry, device=device, which=which)
        for damaged in run.summary["damaged"]:
            say(f"Warning: {printable(damaged)}")
        return run.evaluate(progress=tell, **chosen)


def put_evaluation(found: dict[str, Any]) -> None:
    """Print the table of an evaluation, what must be known to read it, and where the pictures are."""
    from metaforge.cli.output import put_rich
    from metaforge.results.tables import measures_table, summary_table

    for table in (summary_table(found), measures_table(found)):
        if table is not None:
            put_rich(table)
    put(f"pictures: {', '.join(found['pictures'])}")
    put(f"report: {Path(found['folder']) / 'report.md'}")
