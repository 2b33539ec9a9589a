"""`metaforge schema`: what a run file may say, for editors and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaforge.cli.options import AsJson, KindOption, chosen_kind, scanned
from metaforge.cli.output import guarded, put, put_json, say


@guarded
def schema(
    kind: KindOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
    json: AsJson = False,
) -> None:
    """Print the JSON Schema of a run file, with the options of every installed plugin."""
    from metaforge.config.schema import kind_schema, run_schema
    from metaforge.system.files import write_json

    chosen, registry = chosen_kind(kind), scanned()
    found = run_schema(registry) if chosen is None else kind_schema(registry, chosen)
    for sentence in found.left_out:
        say(f"Left out: {sentence}")
    if out is None:
        # The answer is JSON anyway.
        put_json(found.value)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found.value)
    if json:
        put_json({"file": str(out), "left_out": found.left_out})
    else:
        put(str(out))
