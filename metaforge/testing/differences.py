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
# The derivative is wrong if estimates at three successive steps differ by less than this share of their size and of the
# error of the derivative. By chance, three estimates of a rough function do so in one case of ten thousand.
CONVERGED = 0.01

Verdict = Literal["agrees", "differs", "rough"]


class Comparison(NamedTuple):
    """The result of comparing a derivative with finite differences.

    Attributes:
        verdict: Whether the derivative agrees with the finite differences, differs from them, or cannot be judged
            because they do not converge.
        derivative: The derivative.
        estimates: The extrapolated finite differences, from the largest step to the smallest.
        error: The distance of the derivative from the estimate by which it is judged: the first with which it agrees,
            else the first that its neighbours confirm, else the last.
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
    # Of three estimates at successive steps, the middle one is confirmed by its neighbours.
    confirmed = [
        middle
        for before, middle, after in zip(estimates, estimates[1:], estimates[2:], strict=False)
        if max(abs(before - middle), abs(after - middle)) <= CONVERGED * min(abs(derivative - middle), abs(middle))
    ]
    best = confirmed[0] if confirmed else estimates[-1]
    # A derivative or a function that is not finite is wrong, and not rough.
    is_rough = not confirmed and math.isfinite(derivative) and all(map(math.isfinite, estimates))
    return Comparison("rough" if is_rough else "differs", derivative, tuple(estimates), abs(derivative - best))


def _central(function: Callable[[float], float], width: float) -> float:
    return (function(width) - function(-width)) / (2 * width)
