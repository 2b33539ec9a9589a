"""`metaforge features`: the features of all images of a data set, computed once with the network of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaforge.cli import options
from metaforge.cli.output import handle_errors, print_answer, print_json, progress_display
from metaforge.system.streams import stdout_to_stderr


@handle_errors
def features(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write, with the ending .npz.")],
    splits: Annotated[str, typer.Option("--splits", help="Splits of the run's data set.")] = "train,test",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best (in validation), or an outer step.")
    ] = "latest",
    device: options.Device = None,
    no_progress: options.NoProgress = False,
    as_json: options.AsJson = False,
) -> None:
    """Compute the features of all images once with a run's network, as a file that a data set reads."""
    from metaforge.errors import ConfigError

    options.require_run_folder(run)
    if out.suffix != ".npz":
        raise ConfigError(f"--out is {str(out)!r}, but should end with .npz.")
    names = [name.strip() for name in splits.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--splits is {splits!r}, but should be different names such as train,test.")
    which = options.parse_checkpoint(checkpoint)
    from metaforge.runs.features import write_features
    from metaforge.runs.run import load

    with stdout_to_stderr(), progress_display("features", show=not no_progress) as show_progress:
        loaded = load(run, options.scan_plugins(), device=device, which=which)
        about = write_features(loaded, out, names, progress=show_progress)
    if as_json:
        print_json({"file": str(out), **about})
        return
    print_answer(f"{out}: {about['features']} features per image, of step {about['step']} of {run}")
