"""Tests of the comparison with finite differences: smooth functions, kinks, and functions that are too rough."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from metaforge.testing.differences import HALVINGS, Comparison, compare


def compared(function: Callable[[float], float], derivative: float) -> Comparison:
    return compare(function, derivative, width=1e-3, tolerance=1e-6)


@pytest.mark.parametrize(("function", "derivative"), [(math.exp, 1.0), (math.sin, 1.0), (lambda x: x**3, 0.0)])
def test_the_first_estimate_of_a_smooth_function_is_enough(
    function: Callable[[float], float], derivative: float
) -> None:
    found = compared(function, derivative)
    assert (found.verdict, len(found.estimates)) == ("agrees", 1)
    assert found.error == abs(found.estimates[0] - derivative) < 1e-11
    assert found.derivative == derivative


def test_the_estimates_are_differences_of_fourth_order() -> None:
    width = 0.1
    (estimate,) = compare(math.exp, 1.0, width=width, tolerance=1.0).estimates
    first, second = math.exp(width) - math.exp(-width), math.exp(2 * width) - math.exp(-2 * width)
    assert estimate == pytest.approx((8 * first - second) / (12 * width), rel=1e-13)


@pytest.mark.parametrize("derivative", [0.0, 0.9, 1.001, 1 + 3e-6, -1.0, math.nan, math.inf])
def test_a_wrong_derivative_of_a_smooth_function_differs(derivative: float) -> None:
    found = compared(math.exp, derivative)
    assert (found.verdict, len(found.estimates)) == ("differs", HALVINGS + 1)
    if math.isfinite(derivative):
        assert found.error == pytest.approx(abs(derivative - 1), rel=1e-3)


@pytest.mark.parametrize("distance", [3e-5, 7e-4])
def test_a_kink_near_the_point_is_left_behind_by_smaller_steps(distance: float) -> None:
    def function(x: float) -> float:
        return 2 * x + abs(x - distance) + math.log(abs(x - distance))

    slope = 2 - 1 - 1 / distance
    found = compare(function, slope, width=1e-3, tolerance=1e-6 * abs(slope))
    assert found.verdict == "agrees"
    assert len(found.estimates) > 1
    assert compare(function, 0.99 * slope, width=1e-3, tolerance=1e-6 * abs(slope)).verdict == "differs"


@pytest.mark.parametrize("derivative", [1.0, 1 + 1e6, 0.3])
def test_a_function_that_is_rough_at_every_step_is_not_judged(derivative: float) -> None:
    found = compared(lambda x: x + 1e-3 * math.sin(1e9 * x + 1), derivative)
    assert found.verdict == "rough"
    assert len(found.estimates) == HALVINGS + 1
    assert len({round(estimate, 3) for estimate in found.estimates}) > HALVINGS / 2


def test_a_function_that_is_not_finite_is_wrong_and_not_rough() -> None:
    assert compared(lambda x: math.nan, 1.0).verdict == "differs"
