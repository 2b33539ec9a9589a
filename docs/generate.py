"""Writes `docs/plugins/`: one page per built-in plugin, from what `metaforge describe` says, and an index by kind.

`make docs` runs it; a test fails when a page is not what it would write.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import tomli_w

from metaforge.cli.describe import description, written
from metaforge.config.sources import SINGLES
from metaforge.config.toml_text import to_toml_values
from metaforge.registry.entry import CORE, KINDS
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan

FOLDER = Path(__file__).parent / "plugins"
PLURALS = {kind: f"{kind}s" for kind in KINDS} | {"dataset": "data sets"}
NOTICE = "<!-- Written by `make docs` from the plugins themselves: edit those, not this page. -->"


def pages() -> dict[str, str]:
    """Return every page by file name."""
    registry = built_in()
    found = {"README.md": index(registry)}
    results = (FOLDER.parent / "results.md").read_text("utf-8")
    for entry in registry.entries():
        facts = description(registry, entry, data=False)
        measured = re.search(rf"^\| {re.escape(entry.name)} +\|", results, re.MULTILINE) is not None
        found[f"{entry.name}.md"] = page(facts, measured=measured)
    assert len(found) == len(registry.entries()) + 1, "two plugins have one name: give their pages different ones"
    return found


def built_in() -> Registry:
    """Return a registry of MetaForge's own plugins, whatever else is installed."""
    own = [entry for entry in scan().entries() if entry.distribution == CORE]
    return Registry(dataclasses.replace(entry, state="ready", reason="") for entry in own)


def index(registry: Registry) -> str:
    """Return the page that lists all plugins by kind."""
    parts = [
        NOTICE,
        "# Plugins",
        "What comes with MetaForge. `metaforge list-plugins` shows these and all others that are installed;"
        " [write-a-plugin](../write-a-plugin.md) shows how to add one.",
    ]
    for kind in KINDS:
        rows = [f"| [{one.name}]({one.name}.md) | {cell(one.summary)} |" for one in registry.entries(kind)]
        parts += [f"## {PLURALS[kind].capitalize()}", "\n".join(["| name | summary |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def page(facts: dict[str, Any], *, measured: bool) -> str:
    """Return the page of one plugin."""
    parts = [NOTICE, f"# {facts['name']}", facts["text"]]
    if facts["reference"]:
        parts.append(f"Paper: {linked(facts['reference'])}.")
    if words := about(facts):
        parts.append(words)
    if measured:
        parts.append("Measured accuracy, with the command of each run: [results](../results.md).")
    parts += ["## Use", f"```sh\n{facts['command']}\n```", "## Options", options(facts)]
    if facts["defaults"]:
        parts += ["## Suggested settings", "They apply where neither the run file nor the command line says otherwise."]
    for kind, values in facts["defaults"].items():
        parts += [f"For {kind}:", f"```toml\n{run_file(facts, values)}```"]
    return "\n\n".join(parts) + "\n"


def about(facts: dict[str, Any]) -> str:
    """Return the tags as sentences."""
    tags = facts["tags"]
    if facts["kind"] == "dataset":
        return f"It has {tags['kind']} tasks." + (f" Note: {tags['note']}." if "note" in tags else "")
    if not tags:
        return ""
    needs = " and ".join(f"{'an' if need[0] in 'aeiou' else 'a'} {need}" for need in tags["needs"])
    said = [f"Solves {' and '.join(tags['kinds'])} tasks", f"needs {needs or 'neither backbone nor adapter'}"]
    said.append("adapts in steps" if tags["adapts"] else "adapts in one go")
    said.append("trains and tests with one number of classes" if tags["fixed_ways"] else "serves any number of classes")
    said += ["draws noise in training"] if tags["stochastic"] else []
    said += (
        [] if tags.get("exact_meta_gradient", True) else ["learns by a gradient other than that of its loss's value"]
    )
    return f"{'; '.join(said)}."


def options(facts: dict[str, Any]) -> str:
    """Return the table of options."""
    if not facts["options"]:
        return "It has none."
    rows = ["| option | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for one in facts["options"]:
        default = "*required*" if one["required"] else f"`{written(one['default'])}`"
        words = [cell(text) for text in (one["type"], default, one["bounds"], one["text"].rstrip("."))]
        rows.append(f"| `{one['name']}` | {' | '.join(words)} |")
    place, name = facts["table"], facts["options"][0]["name"]
    first = f"In a run file under `[{place}]`; on the command line `--set {place}.{name}=…`."
    return "\n".join([first, "", *rows])


def run_file(facts: dict[str, Any], values: dict[str, Any]) -> str:
    """Return a plugin's suggested settings as a run file that chooses it."""
    chosen = {facts["kind"]: {"name": facts["name"]}} if facts["kind"] in SINGLES else {}
    return tomli_w.dumps({**chosen, **{k: {**chosen.get(k, {}), **to_toml_values(v)} for k, v in values.items()}})


def linked(reference: str) -> str:
    """Return a reference with its addresses as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", reference)
    text = re.sub(r"openreview\.net (\w+)", r"[OpenReview \1](https://openreview.net/forum?id=\1)", text)
    return re.sub(r"(?<!\()(https?://\S+)", r"<\1>", text)


def cell(text: str) -> str:
    """Return a text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def main() -> None:
    """Write all pages, and remove those of plugins that are no more."""
    wanted = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, "utf-8")
    sys.stdout.write(f"{len(wanted)} pages in {FOLDER}\n")


if __name__ == "__main__":
    main()
