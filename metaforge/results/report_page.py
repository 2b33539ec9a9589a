"""`report.md`: one page about a run, written from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.errors import DataError
from metaforge.results.markdown import code_block, inline, line, picture
from metaforge.results.records import (
    PICTURES,
    Record,
    headline_score,
    read_environment,
    read_metrics,
    read_status,
    read_table,
    read_text,
    read_toml,
    run_seconds,
    scale_of,
    shape_text,
    valid_evaluations,
    without_per_task,
    write_in_folder,
)
from metaforge.results.stream import read_stream, stream_section
from metaforge.results.tables import (
    baseline_texts,
    estimate_text,
    markdown_table,
    plus_minus,
    summary_markdown,
)


def write_report(run_folder: Path) -> Path:
    """Write `report.md` into a run folder and return its path.

    A missing file means a missing section. Invalid evaluations and invalid fields are named and left out; `DataError`
    if another file cannot be read at all.
    """
    config = read_toml(run_folder / "config.toml")
    records, errors = valid_evaluations(run_folder)
    evaluations = [without_per_task(record) for record in records]
    names = [str(read_table(config, key).get("name", "")) for key in ("dataset", "learner")]
    rounds, rounds_problems = _rounds(run_folder)
    status, status_problems = read_status(run_folder)
    environment, environment_problems = read_environment(run_folder)
    parts = [
        f"# {inline(' · '.join(name for name in names if name) or run_folder.name)}",
        *_headlines(evaluations),
        *_evaluations(evaluations),
        *_training(status, read_metrics(run_folder / "metrics.jsonl")),
        *rounds,
        *_pictures(run_folder),
        *_command(run_folder, config),
        *_environment(environment),
        *_left_out([*(error.what for error in errors), *rounds_problems, *status_problems, *environment_problems]),
    ]
    path = run_folder / "report.md"
    write_in_folder(path, "\n\n".join(parts) + "\n", run_folder=run_folder)
    return path


def machine_text(environment: Mapping[str, Any]) -> str:
    """Return the hardware and the version of torch that a run was computed with, in one line."""
    threads = environment.get("threads")
    texts = [
        environment.get("processor"),
        environment.get("cuda"),
        None if threads is None else f"{threads} thread{'' if threads == 1 else 's'}",
        f"torch {environment['torch']}" if "torch" in environment else None,
    ]
    return ", ".join(str(text) for text in texts if text)


def duration_text(seconds: float) -> str:
    """Return a duration in at most two units, e.g. `1 min 23 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _headlines(evaluations: Sequence[Record]) -> list[str]:
    """Return a list with the main score of each evaluation."""
    lines = []
    for one in evaluations:
        best = headline_score(one)
        scale = scale_of(one)
        after = "" if best["steps"] is None else f", {best['steps']} adaptation steps"
        result = f"{shape_text(one)}{after}: {estimate_text(best, scale)} {scale.title}"
        where = f"{one['tasks']} tasks of the {inline(one['split'])} split"
        baselines = ", ".join(f"{name} {text}" for name, text in baseline_texts(one).items())
        lines.append(f"- **{result}** on {where}" + (f" ({baselines})" if baselines else ""))
    return ["\n".join(lines)] if lines else ["Not evaluated yet."]


def _evaluations(evaluations: Sequence[Record]) -> list[str]:
    """Return one section per protocol, with one table for all its task shapes."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for one in evaluations:
        protocol = ("step", "split", "seed", "tasks", "metric", "norm", "transductive", "note", "warn")
        groups.setdefault(tuple(one.get(name) for name in protocol), []).append(one)
    parts = []
    for group in groups.values():
        parts += [
            f"## Evaluation: {inline(group[0]['split'])} split",
            summary_markdown({**group[0], "results": group}).rstrip(),
        ]
    return parts


def _training(status: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the section with the outcome of the training and its last metrics."""
    rows = [[name, str(status[name])] for name in ("outcome", "error", "steps") if name in status]
    if (seconds := run_seconds(status)) is not None:
        rows.append(["time", duration_text(seconds)])
    resumed = status.get("resumed")
    rows += [["resumed with this change", text] for text in (resumed or {}).get("differences", ())]
    last = metrics[-1] if metrics else {}
    for name, value in last.items():
        if name not in ("step", "elapsed", "eta", "score_ci", "val_score_ci") and isinstance(value, int | float):
            rows.append([f"last {name.replace('_', ' ')}", plus_minus(float(value), last.get(f"{name}_ci"))])
    return ["## Training", markdown_table(["name", "value"], rows)] if rows else []


def _rounds(folder: Path) -> tuple[list[str], list[str]]:
    """Return the section on the rounds of a stream of tasks, if there is one, and what is wrong with its record."""
    try:
        record = read_stream(folder)
    except DataError as error:
        return [], [error.what]
    return ([] if record is None else stream_section(record)), []


def _pictures(folder: Path) -> list[str]:
    paths = sorted((folder / PICTURES).glob("*.png"))
    if not paths:
        return []
    return ["## Pictures", *(picture(path.stem, f"{PICTURES}/{path.name}") for path in paths)]


def _command(folder: Path, config: Mapping[str, Any]) -> list[str]:
    command = read_text(folder / "command.txt")
    if not command:
        return []
    seed = f" (seed {config['seed']})" if isinstance(config.get("seed"), int) else ""
    sentence = f"`metaforge train --config config.toml`, with the `config.toml` of this folder, repeats the run{seed}."
    return ["## Reproduce", code_block(command, "sh"), sentence]


def _environment(environment: Mapping[str, Any]) -> list[str]:
    rows = [[name, str(value)] for name, value in environment.items() if not isinstance(value, Mapping | list)]
    for group in (value for value in environment.values() if isinstance(value, Mapping)):
        rows += [[str(name), str(value)] for name, value in group.items()]
    return ["## Environment", markdown_table(["name", "value"], rows)] if rows else []


def _left_out(problems: Sequence[str]) -> list[str]:
    """Return the section on what was invalid in the run folder, and is therefore missing in the report."""
    return ["## Left out", "\n".join(f"- {line(text)}" for text in problems)] if problems else []
