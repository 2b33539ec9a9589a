"""`metaforge ckpt`: look at a run's checkpoints, verify them, and remove those that are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaforge.cli import options
from metaforge.cli.output import guarded, put, put_json, put_table

app = typer.Typer(no_args_is_help=True, help="Look at a run's checkpoints, verify and prune them.")

Run = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command()
@guarded
def show(run: Run, json: options.AsJson = False) -> None:
    """Show a run's checkpoints: step, size, which is the best in validation, and what is wrong with a damaged one."""
    found = _found(run)
    if json:
        put_json(found)
    else:
        _put(found)


@app.command()
@guarded
def verify(run: Run, json: options.AsJson = False) -> None:
    """Compare every file of every checkpoint with its SHA-256; the exit code is 5 where one is damaged or none is."""
    from metaforge.errors import CheckpointError

    found = _found(run)
    bad = [one for one in found["checkpoints"] if not one["valid"]]
    if json:
        put_json(found)
    else:
        _put(found)
    if not found["checkpoints"]:
        raise CheckpointError("There is no checkpoint.", where=str(run), remedy="train longer, or save more often")
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(found['checkpoints'])} checkpoints cannot be used. {bad[0]['fault']}",
            where=str(run),
            remedy="`metaforge train --resume` goes on from the last valid one"
            if len(bad) < len(found["checkpoints"])
            else "restore the run folder from a copy, or train again from its config.toml",
        )


@app.command()
@guarded
def prune(
    run: Run,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Valid checkpoints to keep, beside the best.")] = 1,
    json: options.AsJson = False,
) -> None:
    """Remove all checkpoints but the last valid ones and the best in validation; not while the run is written."""
    from metaforge.runs import checkpoint
    from metaforge.runs.folder import RunFolder

    folder = RunFolder.reopen(run)
    try:
        removed = [path.name for path in checkpoint.prune(run / "ckpt", keep)]
    finally:
        folder.close()
    if json:
        put_json({"run": str(run), "removed": removed})
    else:
        put(f"removed: {', '.join(removed) or 'none'}")


def _found(run: Path) -> dict[str, Any]:
    """Return the facts of a run's checkpoints, the latest first."""
    from metaforge.runs import checkpoint
    from metaforge.runs.folder import require_run

    require_run(run)
    folder, found = run / "ckpt", []
    best = checkpoint.best(folder)
    for step in checkpoint.steps(folder):
        fault = checkpoint.fault(folder, step)
        size = checkpoint.size(folder, step)
        facts = {"step": step, "bytes": size, "best": step == best, "valid": fault is None}
        found.append(facts | {"fault": None if fault is None else fault.what})
    return {"run": str(run), "checkpoints": found}


def _put(found: dict[str, Any]) -> None:
    """Print the checkpoints as a table."""
    rows = [
        (
            str(one["step"]),
            f"{one['bytes']:,}",
            "best" if one["best"] else "",
            "valid" if one["valid"] else one["fault"],
        )
        for one in found["checkpoints"]
    ]
    put_table(("step", "bytes", "", "state"), rows)
