"""`metaforge ckpt`: lists, verifies and removes the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaforge.cli.options import AsJson
from metaforge.cli.output import handle_errors, print_answer, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="List, verify and remove the checkpoints of a run.")

Run = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command()
@handle_errors
def show(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run: step, size, which one is best in validation, and what is wrong with damaged ones.

    Damaged checkpoints do not change the exit code.
    """
    facts = _checkpoint_facts(run)
    if as_json:
        print_json(facts)
    else:
        _print_checkpoints(facts)


@app.command()
@handle_errors
def verify(run: Run, as_json: AsJson = False) -> None:
    """Compare every file of every checkpoint with its SHA-256.

    The exit code is 5 if a checkpoint is damaged, or if there is none.
    """
    from metaforge.errors import CheckpointError

    facts = _checkpoint_facts(run)
    checkpoints = facts["checkpoints"]
    damaged = [checkpoint for checkpoint in checkpoints if not checkpoint["valid"]]
    if as_json:
        print_json(facts)
    else:
        _print_checkpoints(facts)
    if not checkpoints:
        raise CheckpointError(
            "There is no checkpoint.", where=str(run), remedy="train longer, or save more often (checkpoint.interval)"
        )
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(checkpoints)} checkpoints cannot be used. {damaged[0]['fault']}",
            where=str(run),
            remedy="`metaforge train --resume` resumes from the last valid one"
            if len(damaged) < len(checkpoints)
            else "restore the run folder from a copy, or train again from its config.toml",
        )


@app.command()
@handle_errors
def prune(
    run: Run,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Number of latest valid checkpoints to keep, besides the best.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Remove all checkpoints except the latest valid ones and the best in validation.

    A run that is being trained is not changed; the exit code is then 7.
    """
    from metaforge.runs import checkpoint
    from metaforge.runs.folder import RunFolder

    folder = RunFolder.reopen(run)
    try:
        removed = [path.name for path in checkpoint.prune(run / "ckpt", keep)]
    finally:
        folder.close()
    if as_json:
        print_json({"run": str(run), "removed": removed})
    else:
        print_answer(f"removed: {', '.join(removed) or 'none'}")


def _checkpoint_facts(run: Path) -> dict[str, Any]:
    """Return step, size and validity of the checkpoints of a run, the latest first."""
    from metaforge.runs import checkpoint
    from metaforge.runs.folder import require_run

    require_run(run)
    folder = run / "ckpt"
    best = checkpoint.best(folder)
    rows = []
    for step in checkpoint.steps(folder):
        fault = checkpoint.fault(folder, step)
        rows.append(
            {
                "step": step,
                "bytes": checkpoint.size(folder, step),
                "best": step == best,
                "valid": fault is None,
                "fault": None if fault is None else fault.what,
            }
        )
    return {"run": str(run), "checkpoints": rows}


def _print_checkpoints(facts: dict[str, Any]) -> None:
    """Print the checkpoints as a table."""
    rows = [
        (
            str(checkpoint["step"]),
            f"{checkpoint['bytes']:,}",
            "best" if checkpoint["best"] else "",
            "valid" if checkpoint["valid"] else checkpoint["fault"],
        )
        for checkpoint in facts["checkpoints"]
    ]
    print_table(("step", "bytes", "", "state"), rows)
