"""Means of scores with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metaforge.results.records import Estimate


def mean_and_ci(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation (n - 1) and 95 % interval (1.96 sd / √n) of the finite values, and their number.

    What a mean of so few values cannot have is None.
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
    """Return the figure of values; none but the count where one is not finite: leaving it out would flatter."""
    found = mean_and_ci(values)
    return found if found["tasks"] == len(values) else {"mean": None, "sd": None, "ci": None, "tasks": found["tasks"]}
