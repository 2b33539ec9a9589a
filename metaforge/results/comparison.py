"""Tables of many runs: `python -m metaforge.results.comparison OUT.md RUN... [--published FILE]`.

No figure is written by hand: scores, times and commands come from the run folders; what papers report, with its source,
from a TOML file of `[[published]]` tables with `learner`, `dataset`, `ways`, `shots`, `figure` and `source`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaforge.errors import ConfigError, DataError, MetaForgeError
from metaforge.results.records import (
    Record,
    headline,
    read_evaluations,
    read_json,
    read_text,
    read_toml,
    seconds_of,
    shape_text,
    without_tasks,
    write_in_folder,
)
from metaforge.results.report_page import duration, machine
from metaforge.results.tables import (
    CHANCE_WORDS,
    METRIC_WORDS,
    estimate_text,
    level_text,
    markdown,
    plus_minus,
    remarks,
)

_PUBLISHED = ("learner", "dataset", "ways", "shots", "figure", "source")
# What makes two evaluations comparable: the same tasks, scored alike.
_PROTOCOL = ("dataset", "split", "ways", "shots", "queries", "tasks", "seed", "kind", "metric")

Published = Sequence[Mapping[str, Any]]


class Source(NamedTuple):
    """A run as far as its folder tells: name, command, status, environment, configuration and evaluations."""

    name: str
    command: str
    status: Record
    environment: Record
    options: Mapping[str, Any]
    evaluations: list[Record]


def write_results(out: Path, runs: Sequence[Path], *, published: Path | None = None) -> Path:
    """Write the tables of some runs as Markdown and return the path; `DataError` if a run was never evaluated."""
    write_in_folder(out, results_page([read_source(run) for run in runs], read_published(published)))
    return out


def read_source(run: Path) -> Source:
    """Return what a run's folder tells; `DataError` if it has no evaluation."""
    evaluations = [without_tasks(record) for record in read_evaluations(run)]
    if not evaluations:
        raise DataError(
            f"{run} holds no evaluation.", where=str(run), remedy=f"run `metaforge evaluate {run}`, or leave it out"
        )
    return Source(
        run.resolve().name,
        read_text(run / "command.txt"),
        read_json(run / "status.json"),
        read_json(run / "env.json"),
        read_toml(run / "config.toml").get("dataset", {}),
        evaluations,
    )


def read_published(path: Path | None) -> Published:
    """Return published figures, each with its source; `ConfigError` if one is incomplete."""
    if path is None:
        return []
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", where="--published", remedy="name a TOML file")
    entries: list[dict[str, Any]] = read_toml(path).get("published", [])
    for number, entry in enumerate(entries, start=1):
        missing = [name for name in _PUBLISHED if name not in entry]
        if missing:
            raise ConfigError(
                f"Published figure {number} lacks {', '.join(missing)}.", where=str(path), remedy="give every field"
            )
    return entries


def results_page(sources: Sequence[Source], published: Published = ()) -> str:
    """Return the page: a table for each protocol, the learners' own figures, and how to repeat each run."""
    groups: dict[tuple[Any, ...], list[tuple[Source, Record]]] = {}
    for source in sources:
        for one in source.evaluations:
            # Options of the data set decide what a task is; a name alone would mix splits.
            key = (*(one[name] for name in _PROTOCOL), repr(sorted(source.options.items())))
            groups.setdefault(key, []).append((source, one))
    parts = [
        "# Results",
        "Written by `python -m metaforge.results.comparison` from run folders. "
        "Scores are means over test tasks ± 95 % CI.",
    ]
    for key in sorted(groups, key=lambda key: (*key[: len(_PROTOCOL)], str(key))):
        parts += _section(groups[key], published)
    return "\n\n".join([*parts, *_repeat(sources)]) + "\n"


def _section(group: Sequence[tuple[Source, Record]], published: Published) -> list[str]:
    """Return the tables of one protocol."""
    source, one = group[0]
    metric = one["metric"]
    options = ", ".join(f"{name} = {value}" for name, value in source.options.items() if name != "name")
    facts = [
        f"{one['tasks']} tasks of the {one['split']} split, seed {one['seed']}, {one['queries']} queries per class",
        *([options] if options else []),
        f"{CHANCE_WORDS[metric]} {level_text(one['chance'], metric)}",
        f"nearest neighbour {estimate_text(one['floor'], metric)}",
    ]
    notes = dict.fromkeys(text for _, record in group for text in remarks(record))
    cited = [entry for entry in published if _matches(entry, one)]
    rows = [_row(source, record, cited) for source, record in group]
    headings = [
        "learner",
        METRIC_WORDS[metric],
        "by adaptation steps",
        "norm",
        "transductive",
        "outer steps",
        "training",
    ]
    headings += ["machine", "run"]
    if cited:
        headings.append("published")
    else:
        rows = [row[:-1] for row in rows]
    parts = [f"## {one['dataset']}, {shape_text(one)}", "; ".join(facts) + ".", *(f"> {note}" for note in notes)]
    parts.append(markdown(headings, rows))
    if cited:
        parts.append("\n".join(f"{_mark(cited, entry)} {entry['learner']}: {entry['source']}" for entry in cited))
    return parts + _own_figures(group)


def _row(source: Source, record: Record, cited: Published) -> list[str]:
    metric = record["metric"]
    steps = [f"{one['steps']}: {estimate_text(one, metric)}" for one in record["scores"] if one["steps"] is not None]
    seconds = seconds_of(source.status)
    return [
        record["learner"],
        estimate_text(headline(record), metric),
        ", ".join(steps) or "–",
        record["norm"],
        "yes" if record["transductive"] else "no",
        str(source.status.get("steps", "–")),
        "–" if seconds is None else duration(seconds),
        machine(source.environment) or "–",
        source.name,
        ", ".join(f"{e['figure']} {_mark(cited, e)}" for e in cited if e["learner"] == record["learner"]) or "–",
    ]


def _own_figures(group: Sequence[tuple[Source, Record]]) -> list[str]:
    """Return a table for each learner with figures of its own: a row for each run, a column for each figure."""
    names: dict[tuple[str, ...], list[tuple[Source, Record]]] = {}
    for source, record in group:
        if record["measures"]:
            names.setdefault((record["learner"], *record["measures"]), []).append((source, record))
    parts = []
    for (learner, *columns), members in names.items():
        rows = [
            [
                source.name,
                *(
                    "–" if figure["mean"] is None else plus_minus(figure["mean"], figure["ci"])
                    for figure in record["measures"].values()
                ),
            ]
            for source, record in members
        ]
        parts += [f"Figures of {learner}'s own:", markdown(["run", *columns], rows)]
    return parts


def _repeat(sources: Sequence[Source]) -> list[str]:
    """Return how to repeat each run."""
    parts = ["## Commands"]
    for source in sources:
        outcome = source.status.get("outcome")
        parts.append(f"`{source.name}`" + (f" ({outcome})" if outcome else "") + ":")
        if source.command:
            parts.append(f"```sh\n{source.command}\n```")
    return parts


def _matches(entry: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return all(entry[name] == record[name] for name in ("dataset", "ways", "shots"))


def _mark(cited: Published, entry: Mapping[str, Any]) -> str:
    return f"[{list(cited).index(entry) + 1}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m metaforge.results.comparison", description="Tables of many runs.")
    parser.add_argument("out", type=Path, metavar="OUT.md", help="page to write")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, evaluated")
    parser.add_argument("--published", type=Path, metavar="FILE", help="TOML file of published figures")
    chosen = parser.parse_args(arguments)
    try:
        path = write_results(chosen.out, chosen.runs, published=chosen.published)
    except MetaForgeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
