"""`report.md`: one page about a run, written from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.results.records import (
    PICTURES,
    Record,
    headline_score,
    read_evaluations,
    read_json,
    read_metrics,
    read_text,
    read_toml,
    run_seconds,
    shape_text,
    without_per_task,
    write_in_folder,
)
from metaforge.results.tables import (
    CHANCE_WORDS,
    METRIC_WORDS,
    estimate_text,
    markdown_table,
    mean_text,
    plus_minus,
    summary_markdown,
)


def write_report(run_folder: Path) -> Path:
    """Write `report.md` into a run folder and return its path; a missing file means a missing section."""
    config = read_toml(run_folder / "config.toml")
    evaluations = [without_per_task(record) for record in read_evaluations(run_folder)]
    names = [str(config.get(key, {}).get("name", "")) for key in ("dataset", "learner")]
    parts = [
        f"# {' · '.join(name for name in names if name) or run_folder.name}",
        *_headlines(evaluations),
        *_evaluations(evaluations),
        *_training(read_json(run_folder / "status.json"), read_metrics(run_folder / "metrics.jsonl")),
        *_pictures(run_folder),
        *_command(run_folder, config),
        *_environment(read_json(run_folder / "env.json")),
    ]
    path = run_folder / "report.md"
    write_in_folder(path, "\n\n".join(parts) + "\n")
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
        metric = one["metric"]
        after = "" if best["steps"] is None else f", {best['steps']} adaptation steps"
        result = f"{shape_text(one)}{after}: {estimate_text(best, metric)} {METRIC_WORDS[metric]}"
        chance, floor = mean_text(one["chance"], metric), estimate_text(one["floor"], metric)
        where = f"{one['tasks']} tasks of the {one['split']} split"
        lines.append(f"- **{result}** on {where} ({CHANCE_WORDS[metric]} {chance}, nearest neighbour {floor})")
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
            f"## Evaluation: {group[0]['split']} split",
            summary_markdown({**group[0], "results": group}).rstrip(),
        ]
    return parts


def _training(status: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the section with the outcome of the training and its last metrics."""
    rows = [[name, str(status[name])] for name in ("outcome", "error", "steps") if name in status]
    if (seconds := run_seconds(status)) is not None:
        rows.append(["time", duration_text(seconds)])
    resumed = status.get("resumed")
    differences = resumed.get("differences") if isinstance(resumed, Mapping) else None
    rows += [["resumed with this change", str(one)] for one in differences] if isinstance(differences, list) else []
    last = metrics[-1] if metrics else {}
    for name, value in last.items():
        if name not in ("step", "elapsed", "eta", "score_ci", "val_score_ci") and isinstance(value, int | float):
            rows.append([f"last {name.replace('_', ' ')}", plus_minus(float(value), last.get(f"{name}_ci"))])
    return ["## Training", markdown_table(["name", "value"], rows)] if rows else []


def _pictures(folder: Path) -> list[str]:
    paths = sorted((folder / PICTURES).glob("*.png"))
    if not paths:
        return []
    return ["## Pictures", *(f"![{path.stem}]({PICTURES}/{path.name})" for path in paths)]


def _command(folder: Path, config: Mapping[str, Any]) -> list[str]:
    command = read_text(folder / "command.txt")
    if not command:
        return []
    seed = f" (seed {config['seed']})" if "seed" in config else ""
    sentence = f"`metaforge train --config config.toml`, with the `config.toml` of this folder, repeats the run{seed}."
    return ["## Reproduce", f"```sh\n{command}\n```", sentence]


def _environment(environment: Mapping[str, Any]) -> list[str]:
    rows = [[name, str(value)] for name, value in environment.items() if not isinstance(value, Mapping | list)]
    for group in (value for value in environment.values() if isinstance(value, Mapping)):
        rows += [[str(name), str(value)] for name, value in group.items()]
    return ["## Environment", markdown_table(["name", "value"], rows)] if rows else []
