"""Compares a derivative with finite differences, and tells a wrong derivative from a function that is too rough.

Central differences at steps `h` and `2h` are combined by Richardson extrapolation, which cancels their error of second
order. If the derivative disagrees with the first estimate, the step is halved again and again: the estimates of a
smooth function converge, those of a function that is rough at the scale of all steps do not, and then say nothing about
its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

# The step is halved at most so often. The last step is a two-thousandth of the first: at first steps of 1e-3, the
# rounding error of differences in float64 is then still below 1e-9.
HALVINGS = 11
# The derivative is wrong if estimates at three successive steps differ by less than this share of its error.
CONVERGED = 0.01

Verdict = Literal["agrees", "differs", "rough"]


class Comparison(NamedTuple):
    """The result of comparing a derivative with finite differences.

    Attributes:
        verdict: Whether the derivative agrees with the finite differences, differs from them, or cannot be judged
            because they do not converge.
        derivative: The derivative.
        estimates: The extrapolated finite differences, from the largest step to the smallest.
        error: The distance of the derivative from the estimate that it is judged by: the first with which it agrees,
            else the one that its neighbours confirm best.
    """

    verdict: Verdict
    derivative: float
    estimates: tuple[float, ...]
    error: float


def compare(function: Callable[[float], float], derivative: float, *, width: float, tolerance: float) -> Comparison:
    """Compare a derivative with finite differences of a function.

    Args:
        function: A function of the distance from the point of the derivative.
        derivative: The derivative to compare.
        width: The first step. Steps of twice this width are taken too.
        tolerance: The largest error with which the derivative agrees.

    Returns:
        The comparison. It ends with the first estimate with which the derivative agrees, so a correct derivative of a
        smooth function takes four calls of the function.
    """
    wide = _central(function, 2 * width)
    estimates: list[float] = []
    for halving in range(HALVINGS + 1):
        narrow = _central(function, width / 2**halving)
        estimates.append((4 * narrow - wide) / 3)
        wide = narrow
        if abs(derivative - estimates[-1]) <= tolerance:
            return Comparison("agrees", derivative, tuple(estimates), abs(derivative - estimates[-1]))
    uncertainty, middle = min(
        (_span(estimates[index - 1 : index + 2]), estimates[index]) for index in range(1, len(estimates) - 1)
    )
    error = abs(derivative - middle)
    # A derivative or a function that is not finite is wrong, and not rough.
    is_finite = math.isfinite(derivative) and math.isfinite(uncertainty)
    is_rough = is_finite and uncertainty > CONVERGED * error
    return Comparison("rough" if is_rough else "differs", derivative, tuple(estimates), error)


def _central(function: Callable[[float], float], width: float) -> float:
    return (function(width) - function(-width)) / (2 * width)


def _span(estimates: list[float]) -> float:
    """Return the largest minus the smallest estimate; infinite if one of them is not finite."""
    return max(estimates) - min(estimates) if all(map(math.isfinite, estimates)) else math.inf
