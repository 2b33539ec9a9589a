"""The metrics that a run shows while it trains: means over tasks with confidence intervals, speed and time left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metaforge.config.settings import TrainConfig
from metaforge.results.statistics import mean_and_ci
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
    means = {name: math.fsum(by_task) / len(by_task) for name, by_task in state.window.items()}
    return {
        **means,
        **(score_metrics(state.window["score"]) if "score" in means else {}),
        **({"skipped": float(len(state.skipped))} if state.skipped else {}),
        "elapsed": seconds,
        "eta": max(0.0, (total - step) * seconds / step),
        "tasks_per_second": step * config.tasks / seconds,
    }


def score_metrics(scores: Sequence[float]) -> dict[str, float]:
    """Return the mean `score` and the half-width `score_ci` of its 95 % confidence interval.

    The mean is NaN if one of the scores is; a single score has no interval.
    """
    estimate = mean_and_ci(scores)
    if estimate["mean"] is None or estimate["tasks"] < len(scores):
        return {"score": math.nan}
    return {"score": estimate["mean"]} | ({} if estimate["ci"] is None else {"score_ci": estimate["ci"]})
