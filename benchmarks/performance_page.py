"""The figures of the benchmarks: kept as JSON, and written as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaforge.system import machine

RECORDS = Path(__file__).with_name("records") / "performance"
PAGE = Path("docs/performance.md")

_INTRODUCTION = """# Performance

Written by `python -m benchmarks`; do not edit. Within a case everybody does the same work on the same tasks from the
same weights, gradients are compared first, all take turns in one run, each in a process of its own, and the figures are
medians. Ratios can be compared between machines, times cannot. Peers are run as their documentation shows, as a loop
over tasks; what MetaForge sets when it starts (allocator thresholds) is set for MetaForge alone.
"""
_HEADINGS = {
    "speed": "Beside others",
    "limit": "Beside the machine",
    "data": "Episodes",
    "scale": "Size and processes",
}
_COMMANDS = {name: f"python -m benchmarks {name}" for name in _HEADINGS}


def keep(kind: str, name: str, figures: dict[str, Any]) -> None:
    """Write the figures of a case, with what must be known of the machine."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{kind}-{name}.json"
    path.write_text(json.dumps({"name": name, "machine": machine.facts(), **figures}, indent=1) + "\n", "utf-8")


def write_table() -> None:
    """Write the page from all figures that are kept."""
    parts = [_INTRODUCTION]
    for kind, heading in _HEADINGS.items():
        found = [json.loads(path.read_text("utf-8")) for path in sorted(RECORDS.glob(f"{kind}-*.json"))]
        if not found:
            continue
        machine = found[0]["machine"]
        parts.append(f"## {heading}\n\n`{_COMMANDS[kind]}`, {machine['processor']}, torch {machine['torch']}\n")
        for one in found:
            parts += [f"### {one['title']}\n", _table(one["rows"]), *[f"{note}\n" for note in one.get("notes", [])]]
    PAGE.write_text("\n".join(parts), "utf-8")


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *[[_shown(row.get(name)) for name in names] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
