"""`metaforge evaluate`: the scores of a trained run on test tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli import options
from metaforge.cli.output import (
    handle_errors,
    print_answer,
    print_json,
    print_note,
    print_rich_table,
    progress_display,
)
from metaforge.errors import printable
from metaforge.system.streams import stdout_to_stderr

if TYPE_CHECKING:
    from metaforge.registry.registry import Registry
    from metaforge.runs.checkpoint import Which


@handle_errors
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    ways: Annotated[int | None, typer.Option("--ways", min=1, max=100_000, help="Number of classes in a task.")] = None,
    shots: Annotated[
        str | None, typer.Option("--shots", help="Support examples per class, one or several numbers: 1,5,10.")
    ] = None,
    queries: Annotated[
        int | None, typer.Option("--queries", min=1, max=100_000, help="Query examples per class.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", help="Adaptation steps, one or several numbers: 0,1,5.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option("--tasks", min=1, max=options.MAX_INTEGER, help="Number of tasks to evaluate on.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of the data set.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=options.MAX_INTEGER, help="Seed of the episodes.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="Shapes of tasks: fixed or varied.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best (in validation), or an outer step.")
    ] = "latest",
    device: options.Device = None,
    no_progress: options.NoProgress = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a trained run on test tasks; write records, pictures and report.md into its folder."""
    settings = {
        "ways": ways,
        "shots": options.parse_integers("--shots", shots),
        "queries": queries,
        "steps": options.parse_integers("--steps", steps),
        "tasks": tasks,
        "split": split,
        "seed": seed,
        "sampler": sampler,
    }
    options.require_run_folder(run)
    which = options.parse_checkpoint(checkpoint)
    from metaforge.engine import processes

    if processes.rank() > 0:
        # Under torchrun, rank 0 evaluates alone.
        return
    result = evaluate_folder(
        run, options.scan_plugins(), device=device, which=which, progress=not no_progress, **settings
    )
    warn_of_invalid_records(run)
    (print_json if as_json else print_evaluation)(result)


def evaluate_folder(
    folder: Path,
    registry: Registry,
    *,
    progress: bool,
    device: str | None = None,
    which: Which = "latest",
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate the run in a folder and return the result; with `progress`, show progress on stderr.

    `settings` are the arguments of `metaforge.runs.run.Run.evaluate`.
    """
    from metaforge.runs.run import load
    from metaforge.system.signals import stop_requests

    # What plugins print goes to stderr: stdout is for the answer.
    with stdout_to_stderr(), stop_requests(), progress_display("evaluating", show=progress) as show_progress:
        run = load(folder, registry, device=device, which=which)
        for damaged in run.summary["damaged"]:
            print_note(f"Warning: {printable(damaged)}")
        return run.evaluate(progress=show_progress, **settings)


def warn_of_invalid_records(folder: Path) -> None:
    """Print on stderr which evaluations in a run folder are invalid; pictures and report leave them out."""
    from metaforge.results.records import valid_evaluations

    for error in valid_evaluations(folder)[1]:
        print_note(f"Warning: {error.what} It is left out. ({error.where})")


def print_evaluation(result: dict[str, Any]) -> None:
    """Print the tables of an evaluation, and the paths of its pictures and report."""
    from metaforge.results.tables import own_metrics_table, summary_table

    for table in (summary_table(result), own_metrics_table(result)):
        if table is not None:
            print_rich_table(table)
    print_answer(f"pictures: {', '.join(result['pictures'])}")
    print_answer(f"report: {Path(result['folder']) / 'report.md'}")
