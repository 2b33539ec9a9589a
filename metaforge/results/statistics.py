"""Means of scores with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict


class Estimate(TypedDict):
    """A mean over tasks: standard deviation, half width of the 95 % confidence interval, and number of tasks.

    A statistic that so few values do not have is None.
    """

    mean: float | None
    sd: float | None
    ci: float | None
    tasks: int


class StepScore(Estimate):
    """The score after a number of adaptation steps; `steps` is None for a learner that does not adapt in steps."""

    steps: int | None


def mean_and_ci(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation (n - 1) and 95 % interval (1.96 sd / √n) of the finite values, and their number.

    The mean of no values is None, and so are the standard deviation and the interval of fewer than two.
    """
    finite = [value for value in values if math.isfinite(value)]
    n = len(finite)
    if n == 0:
        return {"mean": None, "sd": None, "ci": None, "tasks": 0}
    mean = math.fsum(finite) / n
    if n == 1:
        return {"mean": mean, "sd": None, "ci": None, "tasks": 1}
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (n - 1))
    return {"mean": mean, "sd": sd, "ci": 1.96 * sd / math.sqrt(n), "tasks": n}


def strict_mean_and_ci(values: Sequence[float]) -> Estimate:
    """Return the same as `mean_and_ci` if all values are finite, otherwise only the number of finite values.

    A mean over the other tasks alone would look better than the learner is.
    """
    estimate = mean_and_ci(values)
    if estimate["tasks"] == len(values):
        return estimate
    return {"mean": None, "sd": None, "ci": None, "tasks": estimate["tasks"]}


def range_text(ends: Sequence[int]) -> str:
    """Return the smallest and the largest of some numbers, or the one number if they are equal."""
    least, most = ends
    return str(least) if least == most else f"{least} to {most}"
