"""Writes `docs/plugins/`: one page per built-in plugin, from the facts that `metaforge describe` shows, and an index.

`make docs` runs it. A test fails if a page differs from what it would write.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from metaforge.cli.describe import description, value_text
from metaforge.config.sources import SINGLES
from metaforge.config.toml_text import to_toml_values
from metaforge.registry.entry import CORE, KINDS, Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan

FOLDER = Path(__file__).parent / "plugins"
PLURALS = {kind: f"{kind}s" for kind in KINDS} | {"dataset": "data sets", "optimizer": "outer optimisers"}
# The line of a docstring below which everything is a list of departures.
DEPARTURES = "Departures from the paper:"
NOTICE = "<!-- Written by `make docs` from the source of the plugins: edit that, not this page. -->"


def pages() -> dict[str, str]:
    """Return every page by file name."""
    registry = built_in()
    texts = {"README.md": index(registry)}
    results = (FOLDER.parent / "results.md").read_text("utf-8")
    for entry in registry.entries():
        facts = description(registry, entry, data=False)
        measured = re.search(rf"^\| {re.escape(entry.name)} +\|", results, re.MULTILINE) is not None
        texts[file_name(registry, entry)] = page(facts, measured=measured and entry.kind == "learner")
    return texts


def file_name(registry: Registry, entry: Entry) -> str:
    """Return the file name of a plugin's page, which has the kind in it if plugins of several kinds have the name."""
    shared = sum(other.name == entry.name for other in registry.entries()) > 1
    return f"{entry.name}-{entry.kind}.md" if shared else f"{entry.name}.md"


def built_in() -> Registry:
    """Return a registry of the built-in plugins only, whatever else is installed."""
    own = [entry for entry in scan().entries() if entry.distribution == CORE]
    return Registry(dataclasses.replace(entry, state="ready", reason="") for entry in own)


def index(registry: Registry) -> str:
    """Return the page that lists all built-in plugins by kind."""
    parts = [
        NOTICE,
        "# Plugins",
        "The plugins that come with MetaForge. `metaforge list-plugins` lists all installed plugins;"
        " [write-a-plugin](../write-a-plugin.md) shows how to write one.",
    ]
    for kind in KINDS:
        rows = [f"| [{one.name}]({file_name(registry, one)}) | {cell(one.summary)} |" for one in registry.entries(kind)]
        parts += [f"## {PLURALS[kind].capitalize()}", "\n".join(["| name | summary |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def page(facts: dict[str, Any], *, measured: bool) -> str:
    """Return the page of one plugin."""
    text, departures = split_departures(facts["text"])
    parts = [NOTICE, f"# {facts['name']}", text]
    if facts["reference"]:
        parts.append(f"Paper: {linked(facts['reference'])}.")
    if sentence := about(facts):
        parts.append(sentence)
    if measured:
        parts.append("Measured accuracy, with the command of each run: [results](../results.md).")
    parts += ["## Use", f"```sh\n{facts['command']}\n```", "## Options", options(facts)]
    if facts.get("settings"):
        parts += ["## Settings", f"```toml\n{run_file(facts, facts['settings'])}```"]
    if facts["defaults"]:
        parts += ["## Suggested settings", "They apply unless the run file or the command line sets other values."]
    for kind, values in facts["defaults"].items():
        parts += [f"For {kind}:", f"```toml\n{run_file(facts, values)}```"]
    if departures:
        parts += ["## Departures from the paper", departures]
    return "\n\n".join(parts) + "\n"


def split_departures(text: str) -> tuple[str, str]:
    """Return a docstring up to the line that begins the departures from the paper, and what follows that line."""
    before, _, after = f"{text}\n".partition(f"\n{DEPARTURES}\n")
    return before.strip(), after.strip()


def about(facts: dict[str, Any]) -> str:
    """Return the tags as a sentence."""
    tags = facts["tags"]
    if facts["kind"] == "dataset":
        return f"It has {tags['kind']} tasks." + (f" Note: {tags['note']}." if "note" in tags else "")
    if "detaches" in tags:
        sentences = ["The meta-gradient leaves out the derivatives of its updates."] if tags["detaches"] else []
        return " ".join([*sentences, *([] if tags["rate"] else ["An adapter with a learning rate must follow it."])])
    if not tags:
        return ""
    needs = " and ".join(f"{'an' if need[0] in 'aeiou' else 'a'} {need}" for need in tags["needs"])
    others = ", and supervised tasks of any other kind" if tags.get("other_kinds") else ""
    clauses = [
        f"Solves {' and '.join(tags['kinds'])} tasks{others}",
        f"needs {needs or 'neither backbone nor adapter'}",
    ]
    clauses.append("adapts in steps" if tags["adapts"] else "adapts without inner steps")
    clauses.append(
        "is evaluated on as many classes as it was trained on"
        if tags["fixed_ways"]
        else "can be evaluated on any number of classes"
    )
    clauses += ["uses random numbers in training"] if tags["stochastic"] else []
    if not tags.get("exact_meta_gradient", True):
        clauses.append("its meta-gradient is not the derivative of its loss")
    clauses += [f"gives regularizers the terms {', '.join(tags['terms'])}"] if tags["terms"] else []
    if steps := tags.get("converges_at", 0):
        clauses.append(f"its meta-gradient is exact after {steps} inner steps")
    return f"{'; '.join(clauses)}."


def options(facts: dict[str, Any]) -> str:
    """Return the table of options."""
    if not facts["options"]:
        return "This plugin has no options."
    rows = ["| option | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for option in facts["options"]:
        default = "*required*" if option["required"] else f"`{value_text(option['default'])}`"
        cells = [cell(text) for text in (option["type"], default, option["bounds"], option["text"].rstrip("."))]
        rows.append(f"| `{option['name']}` | {' | '.join(cells)} |")
    table, name = facts["table"], facts["options"][0]["name"]
    where = f"Set them in a run file under `[{table}]`, or on the command line with `--set {table}.{name}=…`."
    return "\n".join([where, "", *rows])


def run_file(facts: dict[str, Any], values: dict[str, Any]) -> str:
    """Return a plugin's suggested settings as a run file that selects the plugin."""
    chosen = {facts["kind"]: {"name": facts["name"]}} if facts["kind"] in SINGLES else {}
    if facts["kind"] in ("adapter", "regularizer", "preset"):
        # The page's command names a learner that can use the plugin.
        chosen = {"learner": {"name": facts["command"].split("--learner ")[1].split()[0]}}
    if facts["kind"] in ("adapter", "regularizer"):
        chosen[f"{facts['kind']}s"] = {facts["name"]: {}}
    tables = {key: {**chosen.get(key, {}), **v} if isinstance(v, Mapping) else v for key, v in values.items()}
    return tomli_w.dumps(to_toml_values({**chosen, **tables}))


def linked(reference: str) -> str:
    """Return a reference with arXiv numbers, OpenReview names and addresses as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", reference)
    text = re.sub(r"openreview\.net (\w+)", r"[OpenReview \1](https://openreview.net/forum?id=\1)", text)
    return re.sub(r"(?<!\()(https?://\S+)", r"<\1>", text)


def cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def main() -> None:
    """Write all pages, and remove those of plugins that no longer exist."""
    texts = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, "utf-8")
    sys.stdout.write(f"{len(texts)} pages in {FOLDER}\n")


if __name__ == "__main__":
    main()
