"""Tables that compare runs: `python -m metaforge.results.comparison OUT.md RUN... [--published FILE]`.

No number is written by hand. Scores, times and commands are read from the run folders. Scores that papers report are
read from a TOML file of `[[published]]` tables with `learner`, `dataset`, `ways`, `shots`, `score` and `source`; those
of a learner with certain adapters and regularizers have `plugins`, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaforge.errors import ConfigError, DataError, MetaForgeError, PluginError
from metaforge.registry.scan import scan
from metaforge.results.markdown import code_block, code_span, inline, line
from metaforge.results.records import (
    Record,
    headline_score,
    queries_text,
    read_environment,
    read_evaluations,
    read_status,
    read_table,
    read_text,
    read_toml,
    run_seconds,
    scale_of,
    shape_text,
    without_per_task,
    write_in_folder,
)
from metaforge.results.report_page import duration_text, machine_text
from metaforge.results.tables import (
    baseline_texts,
    estimate_text,
    markdown_table,
    notes_and_warnings,
    own_metric_text,
)

_PUBLISHED_FIELDS = ("learner", "dataset", "ways", "shots", "score", "source")
# Two evaluations that agree in these fields have the same tasks and the same kind of score: one table shows both.
_PROTOCOL = ("dataset", "split", "ways", "shots", "queries", "tasks", "seed", "kind", "metric")

Published = Sequence[Mapping[str, Any]]


class EvaluatedRun(NamedTuple):
    """What a run folder contains.

    Attributes:
        name: The name of the folder.
        command: The command line of the training.
        status: The run's `status.json`.
        environment: The run's `env.json`.
        options: The `[dataset]` table of its configuration, with the defaults of options that are newer than the run.
        plugins: The names of its adapters and regularizers, in their order.
        evaluations: Its evaluations, without the scores of single tasks.
    """

    name: str
    command: str
    status: Record
    environment: Record
    options: Mapping[str, Any]
    plugins: list[str]
    evaluations: list[Record]


def write_comparison(out: Path, folders: Sequence[Path], *, published: Path | None = None) -> Path:
    """Write the tables of some runs as Markdown and return the path; `DataError` if a run has no evaluation."""
    write_in_folder(out, comparison_page([read_run(folder) for folder in folders], read_published(published)))
    return out


def read_run(folder: Path) -> EvaluatedRun:
    """Return what a run folder contains; `DataError` if it has no evaluation."""
    evaluations = [without_per_task(record) for record in read_evaluations(folder)]
    if not evaluations:
        raise DataError(
            f"{folder} has no evaluation.",
            where=str(folder),
            remedy=f"run `metaforge evaluate {folder}`, or leave the folder out",
        )
    config = read_toml(folder / "config.toml")
    return EvaluatedRun(
        folder.resolve().name,
        read_text(folder / "command.txt"),
        read_status(folder)[0],
        read_environment(folder)[0],
        _with_newer_options(read_table(config, "dataset")),
        [*read_table(config, "adapters"), *read_table(config, "regularizers")],
        evaluations,
    )


def _with_newer_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a data set, those that it did not have yet at their defaults, so that runs can be compared.

    The table is as it is where the data set is not installed.
    """
    try:
        options = scan().load("dataset", str(table.get("name", ""))).Config
    except PluginError:
        return dict(table)
    defaults = options.model_construct().model_dump(mode="json", exclude_none=True)
    return {**{name: value for name, value in table.items() if name == "name"}, **defaults, **table}


def read_published(path: Path | None) -> Published:
    """Return published scores, each with its source; `ConfigError` if one lacks a field."""
    if path is None:
        return []
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", where="--published", remedy="give the path of a TOML file")
    entries: list[dict[str, Any]] = read_toml(path).get("published", [])
    for number, entry in enumerate(entries, start=1):
        missing = [name for name in _PUBLISHED_FIELDS if name not in entry]
        if missing:
            raise ConfigError(
                f"Published score {number} lacks {', '.join(missing)}.", where=str(path), remedy="add what is missing"
            )
    return entries


def comparison_page(runs: Sequence[EvaluatedRun], published: Published = ()) -> str:
    """Return the page: a table for each protocol, the learners' own metrics, and the command of each run."""
    groups: dict[tuple[Any, ...], list[tuple[EvaluatedRun, Record]]] = {}
    for run in runs:
        for record in run.evaluations:
            # The data set's options decide which tasks there are, so runs with other options get another table.
            key = (*(record[name] for name in _PROTOCOL), repr([record.get("varied"), *sorted(run.options.items())]))
            groups.setdefault(key, []).append((run, record))
    parts = [
        "# Results",
        "Written by `python -m metaforge.results.comparison` from run folders. "
        "Scores are means over test tasks ± 95 % CI.",
    ]
    for key in sorted(groups, key=lambda key: (*key[: len(_PROTOCOL)], str(key))):
        parts += _section(groups[key], published)
    return "\n\n".join([*parts, *_commands(runs)]) + "\n"


def _section(group: Sequence[tuple[EvaluatedRun, Record]], published: Published) -> list[str]:
    """Return the tables of one protocol."""
    run, first = group[0]
    options = ", ".join(f"{name} = {value}" for name, value in run.options.items() if name != "name")
    facts = [
        f"{first['tasks']} tasks of the {first['split']} split, seed {first['seed']}, "
        f"{queries_text(first)} queries per class",
        *([options] if options else []),
        *(f"{name} {text}" for name, text in baseline_texts(first).items()),
    ]
    notes = dict.fromkeys(text for _, record in group for text in notes_and_warnings(record))
    cited = [entry for entry in published if any(_is_of(entry, run, record) for run, record in group)]
    rows = [_row(run, record, cited) for run, record in group]
    headings = [
        "learner",
        "adapters, regularizers",
        scale_of(first).title,
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
    parts = [f"## {inline(first['dataset'])}, {shape_text(first)}", line("; ".join(facts)) + "."]
    parts += [f"> {line(note)}" for note in notes]
    parts.append(markdown_table(headings, rows))
    if cited:
        parts.append("\n".join(f"{_citation(cited, entry)} {_name(entry)}: {entry['source']}" for entry in cited))
    return parts + _own_metrics(group)


def _row(run: EvaluatedRun, record: Record, cited: Published) -> list[str]:
    """Return one run's row of a table; the last cell has the published scores."""
    scale = scale_of(record)
    steps = [f"{one['steps']}: {estimate_text(one, scale)}" for one in record["scores"] if one["steps"] is not None]
    seconds = run_seconds(run.status)
    return [
        record["learner"],
        ", ".join(run.plugins) or "–",
        estimate_text(headline_score(record), scale),
        ", ".join(steps) or "–",
        record["norm"],
        "yes" if record["transductive"] else "no",
        str(run.status.get("steps", "–")),
        "–" if seconds is None else duration_text(seconds),
        machine_text(run.environment) or "–",
        run.name,
        ", ".join(f"{entry['score']} {_citation(cited, entry)}" for entry in cited if _is_of(entry, run, record))
        or "–",
    ]


def _own_metrics(group: Sequence[tuple[EvaluatedRun, Record]]) -> list[str]:
    """Return a table for each learner that has metrics of its own: one row per run, one column per metric."""
    tables: dict[tuple[str, ...], list[tuple[EvaluatedRun, Record]]] = {}
    for run, record in group:
        if record["measures"]:
            tables.setdefault((record["learner"], *record["measures"]), []).append((run, record))
    parts = []
    for (learner, *names), members in tables.items():
        rows = [[run.name, *map(own_metric_text, record["measures"].values())] for run, record in members]
        parts += [f"Own metrics of {inline(learner)}:", markdown_table(["run", *names], rows)]
    return parts


def _commands(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the command of each run, with its outcome."""
    parts = ["## Commands"]
    for run in runs:
        outcome = run.status.get("outcome")
        parts.append(code_span(run.name) + (f" ({outcome})" if outcome else "") + ":")
        if run.command:
            parts.append(code_block(run.command, "sh"))
    return parts


def _name(entry: Mapping[str, Any]) -> str:
    """Return the learner of a published score, with its adapters and regularizers if they are named."""
    return " with ".join([entry["learner"], *([", ".join(entry["plugins"])] if "plugins" in entry else [])])


def _is_of(entry: Mapping[str, Any], run: EvaluatedRun, record: Record) -> bool:
    """Return whether a published score is for the tasks of a run, its learner, and its adapters and regularizers."""
    same = all(entry[name] == record[name] for name in ("learner", "dataset", "ways", "shots"))
    return bool(same and entry.get("plugins", run.plugins) == run.plugins)


def _citation(cited: Published, entry: Mapping[str, Any]) -> str:
    return f"[{list(cited).index(entry) + 1}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page from the arguments of the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m metaforge.results.comparison", description="Tables that compare runs."
    )
    parser.add_argument("out", type=Path, metavar="OUT.md", help="Markdown file to write")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders with an evaluation")
    parser.add_argument("--published", type=Path, metavar="FILE", help="TOML file of published scores")
    options = parser.parse_args(arguments)
    try:
        path = write_comparison(options.out, options.runs, published=options.published)
    except MetaForgeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
