"""Pictures of a run: training curve, scores of the test tasks, an episode, regression fits.

Every function draws one PNG on a figure of its own; nothing global is touched.
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

from metaforge.errors import DataError
from metaforge.results.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, new_figure, plain, save
from metaforge.results.episode_picture import episode_grid
from metaforge.results.records import caption, headline, read_metrics, shape_text
from metaforge.results.tables import CHANCE_WORDS, estimate_text, level_text

__all__ = ["Fit", "episode_grid", "regression_fits", "score_histogram", "steps_curve", "training_curve"]

_LINES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))

Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """One regression task to draw: its true curve at `x` `[n]`, its support points, and predictions at `x` `[n]`."""

    x: Tensor
    truth: Tensor
    support_x: Tensor
    support_y: Tensor
    after: Tensor
    before: Tensor | None = None


def training_curve(metrics_jsonl_path: Path, out: Path, *, title: str = "", metric: str = "accuracy") -> None:
    """Draw loss and (where there is one) score against the outer step; `DataError` if a run has no metrics."""
    rows = [row for row in read_metrics(metrics_jsonl_path) if row.get("loss") is not None]
    if not rows:
        raise DataError(
            "There is no training to draw.", where=str(metrics_jsonl_path), remedy="train for a step or more"
        )
    scored = [row for row in rows if row.get("score") is not None]
    validated = [row for row in rows if row.get("val_score") is not None]
    two = bool(scored or validated)
    figure = new_figure(7.2, 5.4 if two else 3.0, title)
    axes = figure.subplots(2 if two else 1, 1, sharex=True, squeeze=False)[:, 0]
    _series(axes[0], rows, "loss", INK, "training loss")
    axes[0].set_ylabel("loss")
    _log_if_wide(axes[0], [row["loss"] for row in rows])
    if scored:
        _series(axes[1], scored, "score", BLUE, "training tasks")
    if validated:
        steps = [row["step"] for row in validated]
        heights = [row["val_score"] for row in validated]
        spread = [max(row.get("val_score_ci") or 0.0, 0.0) for row in validated]
        axes[1].errorbar(
            steps, heights, spread, color=VERMILION, marker="s", ms=4, lw=1.2, capsize=2, label="validation"
        )
    if two:
        _score_axis(axes[1], metric, [row["score"] for row in scored])
        axes[1].legend(frameon=False, loc="best")
    axes[-1].set_xlabel("outer step")
    save(figure, out)


def score_histogram(record: Mapping[str, Any], out: Path, *, title: str | None = None) -> None:
    """Draw how many tasks got which score, with mean and interval, chance and the nearest-neighbour floor."""
    best = headline(record)
    labels = {one["steps"]: "after" if one["steps"] is None else str(one["steps"]) for one in record["scores"]}
    scores = _finite(record["per_task"]["scores"][labels[best["steps"]]])
    first = record["scores"][0]
    before = _finite(record["per_task"]["scores"][labels[0]]) if first["steps"] == 0 and first is not best else None
    accuracy = record["metric"] == "accuracy"
    everything = np.concatenate([scores] + ([before] if before is not None else []))
    bins, log = _bins(everything, record["ways"] * record["queries"] if accuracy else None)
    figure = new_figure(7.2, 4.4, caption(record) if title is None else title)
    ax = figure.subplots()
    if before is not None:
        ax.hist(before, bins.tolist(), color=ORANGE, alpha=0.4, label="tasks before adaptation")
        # An outline on top: what lies behind the other bars stays visible.
        ax.hist(before, bins.tolist(), histtype="step", color=ORANGE, lw=1.2, zorder=3)
    adapted = "" if best["steps"] is None else f" after {best['steps']} steps"
    ax.hist(scores, bins.tolist(), color=BLUE, alpha=0.85, edgecolor="white", lw=0.5, label=f"tasks{adapted}")
    _marks(ax, record)
    ax.set_ylabel("tasks")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("accuracy of a task" if accuracy else "mean squared error of a task")
    if accuracy:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlim(right=min(ax.get_xlim()[1], 1.015))
    elif log:
        ax.set_xscale("log")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, out)


def _marks(ax: Axes, record: Mapping[str, Any]) -> None:
    """Mark mean and interval, chance and floor on the axis of the scores."""
    best = headline(record)
    if best["mean"] is not None:
        half = best["ci"] or 0.0
        ax.axvline(best["mean"], color=INK, lw=1.8, label=f"mean {estimate_text(best, record['metric'])}")
        ax.axvspan(best["mean"] - half, best["mean"] + half, color=INK, alpha=0.2, lw=0)
    marks = (("chance", CHANCE_WORDS[record["metric"]], "--", VERMILION), ("floor", "nearest neighbour", ":", GREEN))
    for name, words, style, colour in marks:
        label = f"{words} {level_text(record[name], record['metric'])}"
        ax.axvline(record[name]["mean"], color=colour, ls=style, lw=1.8, label=label, zorder=4)


def steps_curve(results: Sequence[Mapping[str, Any]], out: Path, *, title: str | None = None) -> None:
    """Draw the score against the number of adaptation steps with 95 % intervals, a line for each number of shots."""
    first = results[0]
    if title is None:
        title = f"{first['dataset']} · {first['learner']} · {first['split']} split"
    figure = new_figure(6.4, 4.4, title)
    ax = figure.subplots()
    reached = []
    for number, result in enumerate(results):
        colour, marker = _LINES[number % len(_LINES)]
        known = [one for one in result["scores"] if one["steps"] is not None and one["mean"] is not None]
        steps, means = [one["steps"] for one in known], [one["mean"] for one in known]
        spread = [one["ci"] or 0.0 for one in known]
        reached += means
        ax.errorbar(steps, means, spread, color=colour, marker=marker, lw=1.6, capsize=3, label=shape_text(result))
        ax.axhline(result["floor"]["mean"], color=colour, ls=":", lw=1.2)
        ax.axhline(result["chance"]["mean"], color=GREY, ls="--", lw=1.2)
        reached += [result["floor"]["mean"], result["chance"]["mean"]]
    ax.plot([], [], color=GREY, ls=":", label="nearest neighbour")
    ax.plot([], [], color=GREY, ls="--", label=CHANCE_WORDS[first["metric"]])
    _score_axis(ax, first["metric"], reached)
    ax.set_xlabel("adaptation steps")
    tried = sorted({one["steps"] for result in results for one in result["scores"] if one["steps"] is not None})
    if 0 < len(tried) <= 12:
        ax.set_xticks(tried)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, out)


def regression_fits(curves: Sequence[Fit], out: Path, *, title: str = "", steps: int | None = None) -> None:
    """Draw regression tasks in a grid: true curve, support points, predictions before and after adaptation."""
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(3.1 * columns + 0.4, 2.5 * rows + 0.9, title)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    after = "after adaptation" if steps is None else f"after {steps} steps"
    for number, fit in enumerate(curves):
        ax = axes.flat[number]
        x, truth, predicted = _array(fit.x), _array(fit.truth), _array(fit.after)
        order = np.argsort(x)
        ax.plot(x[order], truth[order], color=GREY, lw=4, alpha=0.5, label="truth", solid_capstyle="round")
        heading = _short(_error(predicted, truth))
        if fit.before is not None:
            before = _array(fit.before)
            heading = f"{_short(_error(before, truth))} → {heading}"
            ax.plot(x[order], before[order], color=ORANGE, lw=1.6, ls="--", label="before adaptation")
        ax.plot(x[order], predicted[order], color=BLUE, lw=1.8, label=after)
        ax.plot(_array(fit.support_x), _array(fit.support_y), "^", color=INK, ms=6, mec="white", label="support points")
        plain(ax)
        ax.set_title(f"task {number}: mse {heading}", fontsize=9, color=INK)
    for ax in list(axes.flat)[len(curves) :]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, out)


def _series(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, colour: str, label: str) -> None:
    """Draw a figure of the metrics: as recorded, its interval, and where there are many records a running mean."""
    known = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in known], dtype=np.float64)
    heights = np.array([row[name] for row in known], dtype=np.float64)
    spread = np.array([row.get(f"{name}_ci") or 0.0 for row in known], dtype=np.float64)
    window = len(known) // 25
    marker = "o" if len(known) < 3 else None
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


def _score_axis(ax: Axes, metric: str, values: Sequence[float]) -> None:
    if metric == "accuracy":
        ax.set_ylabel("accuracy")
        # Axis labels of whole per cents would repeat on a narrow range.
        narrow = max(values, default=1.0) - min(values, default=0.0) < 0.06
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if narrow else 0))
        return
    ax.set_ylabel("mean squared error")
    _log_if_wide(ax, values)


def _log_if_wide(ax: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")


def _bins(values: Floats, levels: int | None) -> tuple[Floats, bool]:
    """Return edges of bins, and whether they are even on a logarithm.

    Accuracies are multiples of 1 / `levels`: each bin holds as many of them as the others, or the bars would lie.
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
    """Return the values that are numbers; `DataError` if there are none."""
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(found):
        raise DataError("No task has a finite score to draw.", where="evaluation", remedy="lower the inner rate")
    return found


def _array(values: Tensor) -> Floats:
    array: Floats = values.detach().cpu().double().flatten().numpy()
    return array


def _error(predicted: Floats, truth: Floats) -> float:
    return float(np.mean((predicted - truth) ** 2))


def _short(value: float) -> str:
    return f"{value:.3g}"
