"""Means with their 95 % confidence intervals."""

from __future__ import annotations

import math

import pytest

from metaforge.results.statistics import mean_and_ci, strict_mean_and_ci


def test_the_interval_is_that_of_a_mean() -> None:
    """The mean is 2, the standard deviation (n - 1) 2, the interval 1.96 sd / √3."""
    estimate = mean_and_ci([0.0, 2.0, 4.0])
    assert estimate == {"mean": 2.0, "sd": 2.0, "ci": pytest.approx(1.96 * 2 / math.sqrt(3), rel=1e-15), "tasks": 3}


def test_few_values_and_values_that_are_not_finite() -> None:
    assert mean_and_ci([0.5]) == {"mean": 0.5, "sd": None, "ci": None, "tasks": 1}
    assert mean_and_ci([]) == {"mean": None, "sd": None, "ci": None, "tasks": 0}
    assert mean_and_ci([1.0, math.nan, 3.0])["tasks"] == 2


def test_the_strict_mean_of_values_that_are_not_all_finite_is_none() -> None:
    assert strict_mean_and_ci([0.0, 2.0, 4.0]) == mean_and_ci([0.0, 2.0, 4.0])
    for value in (math.nan, math.inf):
        assert strict_mean_and_ci([1.0, value, 3.0]) == {"mean": None, "sd": None, "ci": None, "tasks": 2}
