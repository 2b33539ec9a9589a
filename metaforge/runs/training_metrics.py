"""The metrics that a run shows while it trains: means over tasks with confidence intervals, speed and time left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metaforge.config.settings import TrainConfig
from metaforge.runs.running_summary import RunningSummary
from metaforge.runs.state import State


def training_metrics(state: State, config: TrainConfig, steps: int) -> dict[str, float]:
    """Return the metrics after a step.

    Args:
        state: The state after the step.
        config: The settings of the outer loop.
        steps: The number of outer steps of the run.

    Returns:
        The means of `loss`, `score` (with `score_ci`) and the learner's other metrics over the tasks since the last
        regular record; `elapsed` and `eta` in seconds, `tasks_per_second` over the whole run, and the number of
        `skipped` steps if there are any.
    """
    step, budget, seconds = state.step, config.budget, state.seconds
    total = steps if budget is None else min(steps, budget * step / seconds)
    means = {name: summary.mean for name, summary in state.window.items()}
    return {
        **means,
        **(_score_metrics(state.window["score"]) if "score" in means else {}),
        **({"skipped": float(len(state.skipped))} if state.skipped else {}),
        "elapsed": seconds,
        "eta": max(0.0, (total - step) * seconds / step),
        "tasks_per_second": step * config.tasks * config.accumulate / seconds,
    }


def score_metrics(scores: Sequence[float]) -> dict[str, float]:
    """Return the mean `score` and the half-width `score_ci` of its 95 % confidence interval.

    The mean is NaN if one of the scores is; a single score has no interval.
    """
    return _score_metrics(RunningSummary().extended(scores))


def _score_metrics(summary: RunningSummary) -> dict[str, float]:
    if not math.isfinite(summary.mean):
        return {"score": math.nan}
    return {"score": summary.mean} | ({} if summary.ci is None else {"score_ci": summary.ci})
