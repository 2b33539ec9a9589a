"""`metaforge list-plugins` and `metaforge describe`: what is installed, and what one plugin does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson
from metaforge.cli.output import guarded, put, put_json, put_table

if TYPE_CHECKING:
    from metaforge.registry import Entry, Registry

KindOption = Annotated[str | None, typer.Option("--kind", "-k", help="learner, adapter, dataset, ...")]


@guarded
def list_plugins(
    kind: KindOption = None,
    json: AsJson = False,
    load: Annotated[bool, typer.Option("--load", help="Import each plugin: times, and what is broken.")] = False,
) -> None:
    """List the installed plugins; nothing is imported unless --load is given."""
    from metaforge.registry import scan

    registry = scan()
    rows = [dataclasses.asdict(entry) for entry in registry.entries(_kind(kind))]
    if load:
        rows = [row | _loaded(registry, entry) for row, entry in zip(rows, registry.entries(_kind(kind)), strict=True)]
    if json:
        put_json(rows)
        return
    headings = ["kind", "name", "state", *(["import"] if load else []), "distribution", "summary"]
    put_table(headings, [_cells(row) for row in rows])


@guarded
def describe(
    name: Annotated[str, typer.Argument(help="Name of a plugin.")], kind: KindOption = None, json: AsJson = False
) -> None:
    """Show what a plugin does: its options, tags, paper, and the command that uses it."""
    from metaforge.cli.describing import description, shown
    from metaforge.registry import scan

    registry = scan()
    facts = description(registry, _found(registry, name, _kind(kind)))
    if json:
        put_json(facts)
    else:
        put(shown(facts))


def _kind(kind: str | None) -> str | None:
    """Return a kind as the registry knows it; the plural is welcome."""
    from metaforge.errors import ConfigError, nearest
    from metaforge.registry import KINDS

    if kind is None or kind in KINDS:
        return kind
    if kind.removesuffix("s") in KINDS:
        return kind.removesuffix("s")
    raise ConfigError(f"There is no kind {kind!r}.{nearest(kind, KINDS)}", remedy=f"the kinds are {', '.join(KINDS)}")


def _found(registry: Registry, name: str, kind: str | None) -> Entry:
    from metaforge.errors import ConfigError, PluginError, nearest

    if kind is not None:
        return registry.find(kind, name)
    bare = name.rpartition(":")[2]
    kinds = list(dict.fromkeys(entry.kind for entry in registry.entries() if entry.name == bare))
    if len(kinds) > 1:
        raise ConfigError(f"{name!r} is the name of {' and '.join(kinds)} plugins.", remedy="choose one with --kind")
    if not kinds:
        names = [entry.name for entry in registry.entries()]
        raise PluginError(
            f"No plugin is called {name!r}.{nearest(name, names)}", remedy="`metaforge list-plugins` shows all"
        )
    return registry.find(kinds[0], name)


def _loaded(registry: Registry, entry: Entry) -> dict[str, Any]:
    """Return what importing a plugin showed: the time that it took, or why it is broken."""
    import time

    # Torch is MetaForge's own dependency: its import must not be counted against the first plugin.
    import metaforge.contracts  # noqa: F401
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
