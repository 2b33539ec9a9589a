"""The metrics that a run shows while it trains: means over tasks with confidence intervals, speed and time left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metaforge.config.settings import TrainConfig
from metaforge.errors import ContractError
from metaforge.runs.running_summary import RunningSummary
from metaforge.runs.state import State

# The most names of metrics between two records: every checkpoint holds the summary of each.
MOST_METRICS = 1000


def extended_window(
    window: Mapping[str, RunningSummary], by_task: Mapping[str, Sequence[float]]
) -> dict[str, RunningSummary]:
    """Return the summaries since the last regular record, extended by the metrics of one step.

    Args:
        window: The summary of each metric, by name.
        by_task: The values of each metric for the tasks of the step, by name. A metric that is missing in a step keeps
            the summary that it has.

    Raises:
        ContractError: The learner has used more than 1,000 names.
    """
    new = [name for name in by_task if name not in window]
    if len(window) + len(new) > MOST_METRICS:
        raise ContractError(
            f"since the last record of metrics (train.log_every) it has used more than {MOST_METRICS:,} names of"
            f" metrics, such as {new[0]!r}; a metric must have the same name in every step"
        )
    empty = RunningSummary()
    return {**window, **{name: window.get(name, empty).extended(values) for name, values in by_task.items()}}


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
