"""An evaluation's figures as tables: for the terminal, and in Markdown.

A summary is what `metaforge.results.evaluate.evaluate_run` returns; its `results` are the summaries of each task shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from metaforge.results.records import shape_text

Row = list[str]

METRIC_WORDS = {"accuracy": "accuracy", "mse": "mean squared error"}
# What a learner scores that knows nothing of the inputs.
CHANCE_WORDS = {"accuracy": "chance", "mse": "support mean"}


def plus_minus(mean: float, half: float | None) -> str:
    """Return `mean ± half` with two digits of the interval, and as many decimals in the mean."""
    if half is None or half <= 0 or not math.isfinite(half):
        return f"{mean:.4g}" + (" ± 0" if half == 0 else "")
    decimals = max(1 - math.floor(math.log10(half)), 0)
    if decimals > 6:
        return f"{mean:.4g} ± {half:.2g}"
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def estimate_text(figure: Mapping[str, Any], metric: str) -> str:
    """Return a figure with its 95 % interval, accuracies in per cent."""
    mean, half = figure["mean"], figure["ci"]
    if mean is None:
        return "not finite"
    if metric != "accuracy":
        return plus_minus(mean, half)
    return f"{100 * mean:.2f}" + (f" ± {100 * half:.2f}" if half is not None else "") + " %"


def level_text(figure: Mapping[str, Any], metric: str) -> str:
    """Return a figure that has no uncertainty of its own to speak of, such as chance, without its interval."""
    mean = figure["mean"]
    return f"{100 * mean:.1f} %" if metric == "accuracy" else f"{mean:.4g}"


def steps_text(steps: int | None) -> str:
    """Return a number of adaptation steps in words for a table."""
    return "after adaptation" if steps is None else f"{steps}"


def score_rows(results: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Return headings and rows: a row for each shape of tasks and each number of adaptation steps."""
    metric = results[0]["metric"]
    headings = [
        "tasks",
        "adaptation steps",
        f"{METRIC_WORDS[metric]} ± 95 % CI",
        CHANCE_WORDS[metric],
        "nearest neighbour",
    ]
    rows = [
        [
            shape_text(result),
            steps_text(score["steps"]),
            estimate_text(score, metric),
            level_text(result["chance"], metric),
            estimate_text(result["floor"], metric),
        ]
        for result in results
        for score in result["scores"]
    ]
    return headings, rows


def measure_rows(results: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Return headings and rows of the learner's own figures: a row for each, a column for each shape of tasks."""
    names = dict.fromkeys(name for result in results for name in result["measures"])
    rows = []
    for name in names:
        found = [result["measures"].get(name) for result in results]
        known = [None if one is None or one["mean"] is None else plus_minus(one["mean"], one["ci"]) for one in found]
        rows.append([name, *("–" if text is None else text for text in known)])
    return ["figure", *(shape_text(result) for result in results)], rows


def protocol(summary: Mapping[str, Any]) -> str:
    """Return in a sentence how the figures were taken: outer step, split, tasks, seed, norm, transductive or not."""
    transductive = "transductive: yes, queries are seen together" if summary["transductive"] else "transductive: no"
    split = f"{summary['tasks']} tasks of the {summary['split']} split (seed {summary['seed']})"
    step = "" if summary.get("step") is None else f"after outer step {summary['step']}; "
    return f"{step}{split}; norm: {summary['norm']}; {transductive}."


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return what must be read beside the figures: the data set's note, and warnings."""
    results = summary.get("results", [summary])
    return list(dict.fromkeys(text for one in results for text in (one["note"], one["warn"]) if text))


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return an evaluation's scores as a table for the terminal; protocol and remarks stand below it."""
    below = "\n".join([protocol(summary), *remarks(summary)])
    return _rich(
        f"{summary['dataset']} · {summary['learner']} · {summary['split']} split",
        *score_rows(summary["results"]),
        caption=below,
    )


def measures_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the learner's own figures as a table for the terminal, or None if it has none."""
    headings, rows = measure_rows(summary["results"])
    return _rich(f"{summary['learner']}: its own figures", headings, rows) if rows else None


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """Return an evaluation in Markdown: protocol, remarks, scores and the learner's own figures."""
    parts = [protocol(summary), *(f"> {text}" for text in remarks(summary)), markdown(*score_rows(summary["results"]))]
    headings, rows = measure_rows(summary["results"])
    if rows:
        parts += ["The learner's own figures (mean ± 95 % CI):", markdown(headings, rows)]
    return "\n\n".join(parts) + "\n"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded so that it can be read as it stands."""
    table = [[_cell(text) for text in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _rich(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> Table:
    # Text, not markup: names and notes come from plugins.
    table = Table(title=Text(title), caption=Text(caption) if caption else None, caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    return table
