"""`metaforge schema`: the JSON Schema of a run file, for editors and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaforge.cli.options import AsJson, KindOption, parse_kind, scan_plugins
from metaforge.cli.output import handle_errors, print_answer, print_json, print_note


@handle_errors
def schema(
    kind: KindOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of a run file, including the options of every installed plugin.

    With --kind, print only the schema of the table (or tables) of this kind of plugin.
    """
    from metaforge.config.schema import kind_schema, run_schema
    from metaforge.system.files import write_json

    kind, registry = parse_kind(kind), scan_plugins()
    result = run_schema(registry) if kind is None else kind_schema(registry, kind)
    for sentence in result.left_out:
        print_note(f"Left out: {sentence}")
    if out is None:
        # The answer is JSON with or without --json.
        print_json(result.value)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result.value)
    if as_json:
        print_json({"file": str(out), "left_out": result.left_out})
    else:
        print_answer(str(out))
