"""The figures that a run shows while it trains: means over tasks with their intervals, speed, and time left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metaforge.config.settings import TrainConfig
from metaforge.results.statistics import mean_and_ci
from metaforge.runs.state import State


def training_metrics(state: State, config: TrainConfig, steps: int) -> dict[str, float]:
    """Return the figures of the tasks since the last record, and speed and time (seconds) of the whole run."""
    step, budget, seconds = state.step, config.budget, state.seconds
    total = steps if budget is None else min(steps, budget * step / seconds)
    own = {name: math.fsum(figures) / len(figures) for name, figures in state.window.items()}
    return {
        **own,
        **(score_metrics(state.window["score"]) if "score" in own else {}),
        **({"skipped": float(len(state.skipped))} if state.skipped else {}),
        "elapsed": seconds,
        "eta": max(0.0, (total - step) * seconds / step),
        "tasks_per_second": step * config.tasks / seconds,
    }


def score_metrics(scores: Sequence[float]) -> dict[str, float]:
    """Return the mean of scores and its interval; the mean is NaN where a score is, and one score has no interval."""
    found = mean_and_ci(scores)
    if found["mean"] is None or found["tasks"] < len(scores):
        return {"score": math.nan}
    return {"score": found["mean"]} | ({} if found["ci"] is None else {"score_ci": found["ci"]})
