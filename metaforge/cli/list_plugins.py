"""`metaforge list-plugins` and `metaforge describe`: what is installed, and what one plugin does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, chosen_kind, scanned
from metaforge.cli.output import guarded, put_json, put_table, say

if TYPE_CHECKING:
    from metaforge.registry.entry import Entry
    from metaforge.registry.registry import Registry


@guarded
def list_plugins(
    kind: KindOption = None,
    json: AsJson = False,
    load: Annotated[bool, typer.Option("--load", help="Import each plugin: times, and what is broken.")] = False,
) -> None:
    """List the installed plugins; nothing is imported unless --load is given.

    A plugin that ends the process itself (os._exit, a crash of C code) ends a listing with --load too.
    """
    registry = scanned()
    entries = registry.entries(chosen_kind(kind))
    rows = [dataclasses.asdict(entry) | (_loaded(registry, entry) if load else {}) for entry in entries]
    if json:
        put_json(rows)
    else:
        headings = ["kind", "name", "state", *(["import"] if load else []), "distribution", "summary"]
        put_table(headings, [_cells(row) for row in rows])
    if broken := sum(row["state"] == "broken" for row in rows):
        say(f"Note: {broken} of {len(rows)} plugins {'is' if broken == 1 else 'are'} broken")


def _loaded(registry: Registry, entry: Entry) -> dict[str, Any]:
    """Return what importing a plugin showed: the time that it took, or why it is broken."""
    import time

    # Torch is MetaForge's own dependency: its import must not be counted against the first plugin.
    import metaforge.registry.contract  # noqa: F401
    from metaforge.errors import PluginError

    if entry.state not in ("ready", "ambiguous"):
        return {"seconds": None}
    begin = time.perf_counter()
    try:
        registry.load(entry.kind, entry.qualified)
    except PluginError as error:
        return {"seconds": round(time.perf_counter() - begin, 4), "state": "broken", "reason": error.what}
    return {"seconds": round(time.perf_counter() - begin, 4)}


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row.get("seconds", "")
    timed = [] if seconds == "" else ["" if seconds is None else f"{1000 * seconds:.0f} ms"]
    words = row["summary"] if row["state"] == "ready" else row["reason"]
    return [row["kind"], row["name"], row["state"], *timed, f"{row['distribution']} {row['version']}", words]
