"""`metaforge new`: a project for a plugin of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaforge.cli.options import AsJson
from metaforge.cli.output import guarded, put, put_json, say


@guarded
def new(
    kind: Annotated[str, typer.Argument(help="learner, adapter, dataset, regularizer, backbone or hook.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin, e.g. my-idea.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder in which the project's folder is made.")] = Path(),
    json: AsJson = False,
) -> None:
    """Write a project for a plugin of your own: a working minimum, its tests and a README."""
    from metaforge.registry import scan
    from metaforge.scaffold import project

    made = project(kind, name, folder, scan())
    made.write()
    if json:
        put_json({"folder": str(made.folder), "files": sorted(made.files), "commands": list(made.commands)})
        return
    for path in sorted(made.files):
        put(str(made.folder / path))
    say("Next:")
    for command in made.commands:
        say(f"  {command}")
