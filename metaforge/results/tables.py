"""The scores of an evaluation as tables: for the terminal, and in Markdown.

A summary is what `metaforge.results.evaluate.evaluate_run` returns; its `results` has one record for each task shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from metaforge.authoring.scale import Scale
from metaforge.errors import printable
from metaforge.results.markdown import inline, line
from metaforge.results.records import scale_of, shape_text
from metaforge.results.statistics import Estimate

Row = list[str]


def plus_minus(mean: float, half: float | None) -> str:
    """Return `mean ± half`: two significant digits of the half width, and the same number of decimals in the mean."""
    if half is None or half <= 0 or not math.isfinite(half):
        return f"{mean:.4g}" + (" ± 0" if half == 0 else "")
    decimals = max(1 - math.floor(math.log10(half)), 0)
    if decimals > 6:
        return f"{mean:.4g} ± {half:.2g}"
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def estimate_text(estimate: Estimate, scale: Scale) -> str:
    """Return a mean with its 95 % confidence interval, shares in per cent, other scores with their unit."""
    mean, half = estimate["mean"], estimate["ci"]
    if mean is None:
        return "not finite"
    if not scale.percent:
        return f"{plus_minus(mean, half)} {scale.unit}".rstrip()
    return f"{100 * mean:.2f}" + (f" ± {100 * half:.2f}" if half is not None else "") + " %"


def mean_text(estimate: Estimate, scale: Scale) -> str:
    """Return a mean without its interval, shares in per cent: for chance, which hardly varies between tasks."""
    mean = estimate["mean"]
    if mean is None:
        return "not finite"
    return f"{100 * mean:.1f} %" if scale.percent else f"{mean:.4g} {scale.unit}".rstrip()


def baseline_texts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores of an evaluation's baselines by their names: none where the kind of task has none."""
    scale, chance, floor = scale_of(record), record["chance"], record["floor"]
    texts = {} if chance is None else {scale.chance: mean_text(chance, scale)}
    return texts if floor is None else {**texts, scale.floor: estimate_text(floor, scale)}


def steps_text(steps: int | None) -> str:
    """Return a number of adaptation steps for a table; None stands for a learner that does not adapt in steps."""
    return "after adaptation" if steps is None else f"{steps}"


def score_rows(results: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Return headings and rows: one row per task shape and number of adaptation steps."""
    baselines = [baseline_texts(result) for result in results]
    names = dict.fromkeys(name for texts in baselines for name in texts)
    headings = ["tasks", "adaptation steps", f"{scale_of(results[0]).title} ± 95 % CI", *names]
    rows = [
        [
            shape_text(result),
            steps_text(score["steps"]),
            estimate_text(score, scale_of(result)),
            *(texts.get(name, "–") for name in names),
        ]
        for result, texts in zip(results, baselines, strict=True)
        for score in result["scores"]
    ]
    return headings, rows


def own_metric_rows(results: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Return headings and rows of the learner's own metrics: one row per metric, one column per task shape."""
    names = dict.fromkeys(name for result in results for name in result["measures"])
    rows = [[name, *(own_metric_text(result["measures"].get(name)) for result in results)] for name in names]
    return ["metric", *(shape_text(result) for result in results)], rows


def own_metric_text(estimate: Estimate | None) -> str:
    """Return one of the learner's own metrics with its interval, or a dash if it was not measured or not finite."""
    return "–" if estimate is None or estimate["mean"] is None else plus_minus(estimate["mean"], estimate["ci"])


def protocol_text(summary: Mapping[str, Any]) -> str:
    """Return how the scores were measured: outer step, split, tasks, seed, norm policy, transductive or not."""
    transductive = "transductive: yes, queries are seen together" if summary["transductive"] else "transductive: no"
    split = f"{summary['tasks']} tasks of the {summary['split']} split (seed {summary['seed']})"
    step = "" if summary.get("step") is None else f"after outer step {summary['step']}; "
    return f"{step}{split}; norm: {summary['norm']}; {transductive}."


def notes_and_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences to print with the scores: the data set's note, and warnings; each one once."""
    results = summary.get("results", [summary])
    return list(dict.fromkeys(text for one in results for text in (one["note"], one["warn"]) if text))


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the scores of an evaluation as a table for the terminal, with protocol, notes and warnings below it."""
    below = "\n".join([protocol_text(summary), *notes_and_warnings(summary)])
    return _rich_table(
        f"{summary['dataset']} · {summary['learner']} · {summary['split']} split",
        *score_rows(summary["results"]),
        caption=below,
    )


def own_metrics_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the learner's own metrics as a table for the terminal, or None if it has none."""
    headings, rows = own_metric_rows(summary["results"])
    return _rich_table(f"{summary['learner']}: own metrics", headings, rows) if rows else None


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """Return an evaluation in Markdown: protocol, notes and warnings, scores, and the learner's own metrics."""
    parts = [
        line(protocol_text(summary)),
        *(f"> {line(text)}" for text in notes_and_warnings(summary)),
        markdown_table(*score_rows(summary["results"])),
    ]
    headings, rows = own_metric_rows(summary["results"])
    if rows:
        parts += ["The learner's own metrics (mean ± 95 % CI):", markdown_table(headings, rows)]
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded to one width so that the source can be read too.

    The texts are untrusted: their syntax is escaped.
    """
    table = [[inline(text) for text in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _rich_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> Table:
    # Text, so that rich does not interpret markup in names and notes of plugins.
    below = Text("\n".join(map(printable, caption.split("\n")))) if caption else None
    table = Table(title=Text(printable(title)), caption=below, caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(Text(printable(heading)), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    return table
