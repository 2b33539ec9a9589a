"""Plots of a run: training curve, distribution of test scores, scores by adaptation steps, and regression fits.

Every function draws one PNG on a new figure and changes no global state of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.kinds import REGRESSION, TaskKind
from metaforge.authoring.scale import ACCURACY, Scale
from metaforge.errors import DataError
from metaforge.results.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_figure,
    save_png,
    style_axes,
)
from metaforge.results.record_schema import step_label
from metaforge.results.records import caption, headline_score, read_metrics, scale_of, shape_text
from metaforge.results.tables import estimate_text, mean_text

_LINES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))

Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """One regression task to plot: its true curve at `x` `[n]`, its support points, and the predictions at `x` `[n]`.

    `after` are the predictions after adaptation, `before` those before it (None if the learner does not adapt).
    """

    x: Tensor
    truth: Tensor
    support_x: Tensor
    support_y: Tensor
    after: Tensor
    before: Tensor | None = None


def training_curve(metrics_jsonl_path: Path, out: Path, *, title: str = "", scale: Scale = ACCURACY) -> None:
    """Plot the loss, and the scores if there are any, against the outer step; `DataError` if there are no metrics."""
    rows = [row for row in read_metrics(metrics_jsonl_path) if row.get("loss") is not None]
    if not rows:
        raise DataError(
            "There are no training metrics to plot.",
            where=str(metrics_jsonl_path),
            remedy="train for at least one step",
        )
    scored = [row for row in rows if row.get("score") is not None]
    validated = [row for row in rows if row.get("val_score") is not None]
    with_scores = bool(scored or validated)
    figure = new_figure(7.2, 5.4 if with_scores else 3.0, title)
    axes = figure.subplots(2 if with_scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    _plot_series(axes[0], rows, "loss", INK, "training loss")
    axes[0].set_ylabel("loss")
    _use_log_if_wide(axes[0], [row["loss"] for row in rows])
    if scored:
        _plot_series(axes[1], scored, "score", BLUE, "training tasks")
    if validated:
        steps = [row["step"] for row in validated]
        heights = [row["val_score"] for row in validated]
        spread = [max(row.get("val_score_ci") or 0.0, 0.0) for row in validated]
        axes[1].errorbar(
            steps, heights, spread, color=VERMILION, marker="s", ms=4, lw=1.2, capsize=2, label="validation"
        )
    if with_scores:
        _set_score_axis(axes[1], scale, [row["score"] for row in scored])
        axes[1].legend(frameon=False, loc="best")
    axes[-1].set_xlabel("outer step")
    save_png(figure, out)


def score_histogram(record: Mapping[str, Any], out: Path, *, title: str | None = None) -> None:
    """Plot a histogram of the scores of all tasks, with their mean and 95 % interval, and the baselines."""
    best = headline_score(record)
    scores = _finite(record["per_task"]["scores"][step_label(best["steps"])])
    first = record["scores"][0]
    before = _finite(record["per_task"]["scores"][step_label(0)]) if first["steps"] == 0 and first is not best else None
    scale = scale_of(record)
    all_scores = np.concatenate([scores] + ([before] if before is not None else []))
    levels = record["ways"] * record["queries"] if scale.counts else 0
    bins, log = _bins(all_scores, levels or None)
    figure = new_figure(7.2, 4.4, caption(record) if title is None else title)
    ax = figure.subplots()
    if before is not None:
        ax.hist(before, bins.tolist(), color=ORANGE, alpha=0.4, label="tasks before adaptation")
        # The outline on top keeps bars visible that lie behind others.
        ax.hist(before, bins.tolist(), histtype="step", color=ORANGE, lw=1.2, zorder=3)
    adapted = "" if best["steps"] is None else f" after {best['steps']} steps"
    ax.hist(scores, bins.tolist(), color=BLUE, alpha=0.85, edgecolor="white", lw=0.5, label=f"tasks{adapted}")
    _mark_mean_and_baselines(ax, record)
    ax.set_ylabel("tasks")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"{scale.title} of a task{_in_unit(scale)}")
    if scale.percent:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlim(right=min(ax.get_xlim()[1], 1.015))
    elif log:
        ax.set_xscale("log")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_png(figure, out)


def _mark_mean_and_baselines(ax: Axes, record: Mapping[str, Any]) -> None:
    """Draw vertical lines at the mean (with its interval) and at the scores of the baselines."""
    best, scale = headline_score(record), scale_of(record)
    if best["mean"] is not None:
        half = best["ci"] or 0.0
        ax.axvline(best["mean"], color=INK, lw=1.8, label=f"mean {estimate_text(best, scale)}")
        ax.axvspan(best["mean"] - half, best["mean"] + half, color=INK, alpha=0.2, lw=0)
    lines = (("chance", scale.chance, "--", VERMILION), ("floor", scale.floor, ":", GREEN))
    for name, text, style, colour in lines:
        if record[name] is None or record[name]["mean"] is None:
            continue
        label = f"{text} {mean_text(record[name], scale)}"
        ax.axvline(record[name]["mean"], color=colour, ls=style, lw=1.8, label=label, zorder=4)


def steps_curve(results: Sequence[Mapping[str, Any]], out: Path, *, title: str | None = None) -> None:
    """Plot the score and its 95 % interval against the number of adaptation steps, one line for each task shape."""
    first, scale = results[0], scale_of(results[0])
    if title is None:
        title = f"{first['dataset']} · {first['learner']} · {first['split']} split"
    figure = new_figure(6.4, 4.4, title)
    ax = figure.subplots()
    plotted: list[float] = []
    for number, result in enumerate(results):
        colour, marker = _LINES[number % len(_LINES)]
        finite = [one for one in result["scores"] if one["steps"] is not None and one["mean"] is not None]
        steps, means = [one["steps"] for one in finite], [one["mean"] for one in finite]
        spread = [one["ci"] or 0.0 for one in finite]
        plotted += means
        ax.errorbar(steps, means, spread, color=colour, marker=marker, lw=1.6, capsize=3, label=shape_text(result))
        for name, line_colour, style in (("floor", colour, ":"), ("chance", GREY, "--")):
            if result[name] is not None and result[name]["mean"] is not None:
                ax.axhline(result[name]["mean"], color=line_colour, ls=style, lw=1.2)
                plotted.append(result[name]["mean"])
    for name, text, style in (("floor", scale.floor, ":"), ("chance", scale.chance, "--")):
        if first[name] is not None:
            ax.plot([], [], color=GREY, ls=style, label=text)
    _set_score_axis(ax, scale, plotted)
    ax.set_xlabel("adaptation steps")
    ticks = sorted({one["steps"] for result in results for one in result["scores"] if one["steps"] is not None})
    if 0 < len(ticks) <= 12:
        ax.set_xticks(ticks)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_png(figure, out)


def regression_fits(
    fits: Sequence[Fit], out: Path, kind: TaskKind = REGRESSION, *, title: str = "", steps: int | None = None
) -> None:
    """Plot tasks of a kind in a grid: true curve, support points, predictions before and after adaptation."""
    columns = min(3, len(fits))
    rows = math.ceil(len(fits) / columns)
    figure = new_figure(3.1 * columns + 0.4, 2.5 * rows + 0.9, title)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    after = "after adaptation" if steps is None else f"after {steps} steps"
    for number, fit in enumerate(fits):
        ax = axes.flat[number]
        x, truth, predicted = _array(fit.x), _array(fit.truth), _array(fit.after)
        order = np.argsort(x)
        ax.plot(x[order], truth[order], color=GREY, lw=4, alpha=0.5, label="truth", solid_capstyle="round")
        heading = _score_text(kind, fit.after, fit.truth)
        if fit.before is not None:
            before = _array(fit.before)
            heading = f"{_score_text(kind, fit.before, fit.truth)} → {heading}"
            ax.plot(x[order], before[order], color=ORANGE, lw=1.6, ls="--", label="before adaptation")
        ax.plot(x[order], predicted[order], color=BLUE, lw=1.8, label=after)
        ax.plot(_array(fit.support_x), _array(fit.support_y), "^", color=INK, ms=6, mec="white", label="support points")
        style_axes(ax)
        ax.set_title(f"task {number}: {kind.scale.metric} {heading}", fontsize=9, color=INK)
    for ax in list(axes.flat)[len(fits) :]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_png(figure, out)


def _plot_series(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, colour: str, label: str) -> None:
    """Plot one metric as recorded, with its interval; if there are many records, with a running mean on top."""
    recorded = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in recorded], dtype=np.float64)
    heights = np.array([row[name] for row in recorded], dtype=np.float64)
    spread = np.array([row.get(f"{name}_ci") or 0.0 for row in recorded], dtype=np.float64)
    window = len(recorded) // 25
    marker = "o" if len(recorded) < 3 else None
    if window < 2:
        ax.plot(steps, heights, color=colour, lw=1.6, marker=marker, label=label)
    else:
        ax.plot(steps, heights, color=colour, lw=0.7, alpha=0.4)
        means = np.convolve(heights, np.ones(window) / window, mode="valid")
        first = (window - 1) // 2
        ax.plot(
            steps[first : first + len(means)], means, color=colour, lw=2, label=f"{label} (mean of {window} records)"
        )
    if spread.any():
        ax.fill_between(steps, heights - spread, heights + spread, color=colour, alpha=0.15, lw=0)


def _in_unit(scale: Scale) -> str:
    """Return the unit of a score for the label of an axis; an empty string if it has none."""
    return f" [{scale.unit}]" if scale.unit else ""


def _set_score_axis(ax: Axes, scale: Scale, values: Sequence[float]) -> None:
    ax.set_ylabel(f"{scale.title}{_in_unit(scale)}")
    if scale.percent:
        # On a narrow range, labels in whole per cent would repeat.
        narrow = max(values, default=1.0) - min(values, default=0.0) < 0.06
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if narrow else 0))
        return
    _use_log_if_wide(ax, values)


def _use_log_if_wide(ax: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")


def _bins(values: Floats, levels: int | None) -> tuple[Floats, bool]:
    """Return the edges of the bins, and whether they are evenly spaced on a logarithmic axis.

    Accuracies are multiples of `1 / levels`. Every bin covers equally many of them, otherwise some bars would be too
    high.
    """
    low, high = float(values.min()), float(values.max())
    if levels is not None:
        first, last = round(low * levels), round(high * levels)
        width = math.ceil((last - first + 1) / 40)
        count = math.ceil((last - first + 1) / width)
        return (last + 0.5 - width * np.arange(count, -1, -1)) / levels, False
    if low > 0 and high > 50 * low:
        return np.geomspace(low, high, 41), True
    return np.linspace(low, high if high > low else low + 1.0, 41), False


def _finite(values: Sequence[float | None]) -> Floats:
    """Return the finite scores (null in the record stands for the others); `DataError` if there are none."""
    finite = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(finite):
        raise DataError(
            "No task has a finite score to plot.", where="evaluation", remedy="lower the inner learning rate"
        )
    return finite


def _array(values: Tensor) -> Floats:
    array: Floats = values.detach().cpu().double().flatten().numpy()
    return array


def _score_text(kind: TaskKind, predictions: Tensor, targets: Tensor) -> str:
    return f"{float(kind.score(predictions.detach().cpu().double(), targets.cpu().double())):.3g}"
