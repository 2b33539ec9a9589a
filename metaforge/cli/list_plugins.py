"""`metaforge list-plugins`: the installed plugins, from package metadata; none is imported without `--load`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, parse_kind, scan_plugins
from metaforge.cli.output import handle_errors, print_json, print_note, print_table

if TYPE_CHECKING:
    from metaforge.registry.entry import Entry
    from metaforge.registry.registry import Registry


@handle_errors
def list_plugins(
    kind: KindOption = None,
    as_json: AsJson = False,
    load: Annotated[
        bool, typer.Option("--load", help="Import each plugin, and show import times and broken plugins.")
    ] = False,
) -> None:
    """List the installed plugins; none is imported without --load.

    With --load, a plugin that ends the process (os._exit, or a crash in C code) ends the listing too.
    """
    registry = scan_plugins()
    entries = registry.entries(parse_kind(kind))
    rows = [dataclasses.asdict(entry) | (_load(registry, entry) if load else {}) for entry in entries]
    if as_json:
        print_json(rows)
    else:
        headings = ["kind", "name", "state", *(["import"] if load else []), "distribution", "summary"]
        print_table(headings, [_cells(row) for row in rows])
    if broken := sum(row["state"] == "broken" for row in rows):
        print_note(f"Note: {broken} of {len(rows)} plugins {'is' if broken == 1 else 'are'} broken")


def _load(registry: Registry, entry: Entry) -> dict[str, Any]:
    """Import a plugin; return how many seconds that took and, if it failed, why."""
    import time

    # Imports torch, so that its import time is not counted as that of the first plugin.
    import metaforge.registry.contract  # noqa: F401
    from metaforge.errors import PluginError

    if entry.state not in ("ready", "ambiguous"):
        return {"seconds": None}
    start = time.perf_counter()
    try:
        registry.load(entry.kind, entry.qualified)
    except PluginError as error:
        return {"seconds": round(time.perf_counter() - start, 4), "state": "broken", "reason": error.what}
    return {"seconds": round(time.perf_counter() - start, 4)}


def _cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a plugin's row in the table."""
    seconds = row.get("seconds", "")
    import_time = [] if seconds == "" else ["" if seconds is None else f"{1000 * seconds:.0f} ms"]
    text = row["summary"] if row["state"] == "ready" else row["reason"]
    return [row["kind"], row["name"], row["state"], *import_time, f"{row['distribution']} {row['version']}", text]
