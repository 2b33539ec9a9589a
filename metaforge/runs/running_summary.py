"""The count, the mean and the 95 % confidence interval of numbers that arrive step by step, without keeping them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class RunningSummary:
    """What the mean and the confidence interval of some numbers need; its size does not depend on their number.

    Batches are merged as Chan, Golub and LeVeque (1979) do. Each sum is kept as two floats, the rounded sum and its
    rounding error, so that the mean is that of one exact sum over all numbers.

    Attributes:
        count: How many numbers there are.
        total: Their sum; not finite if one of them is not.
        total_error: The exact sum minus `total`.
        squares: The sum of their squared deviations from the mean.
        squares_error: The sum of those deviations before rounding, minus `squares`.
    """

    count: int = 0
    total: float = 0.0
    total_error: float = 0.0
    squares: float = 0.0
    squares_error: float = 0.0

    def extended(self, values: Sequence[float]) -> RunningSummary:
        """Return the summary of these numbers and `values`."""
        if not values:
            return self
        count, (total, error) = len(values), _two_part_sum(values)
        mean = total / count
        deviations = [value - mean for value in values]
        squares, squares_error = _two_part_sum(deviation * deviation for deviation in deviations)
        batch = RunningSummary(count, total, error, squares, squares_error)
        return batch if self.count == 0 else self._merged(batch)

    def _merged(self, other: RunningSummary) -> RunningSummary:
        count = self.count + other.count
        sums = (self.total, self.total_error, other.total, other.total_error)
        gap = self._mean_difference(other)
        between = gap * gap * (self.count * other.count / count)
        squares = (self.squares, self.squares_error, other.squares, other.squares_error, between)
        return RunningSummary(count, *_two_part_sum(sums), *_two_part_sum(squares))

    def _mean_difference(self, other: RunningSummary) -> float:
        """Return the difference of both means, computed exactly: of two almost equal means only few digits are left."""
        if not (math.isfinite(self.total) and math.isfinite(other.total)):
            return math.nan
        means = [(Fraction(part.total) + Fraction(part.total_error)) / part.count for part in (self, other)]
        try:
            return float(means[0] - means[1])
        except OverflowError:
            return math.inf

    @property
    def mean(self) -> float:
        """The mean of at least one number; not finite if one of them is not."""
        return self.total / self.count

    @property
    def ci(self) -> float | None:
        """The half width of the 95 % confidence interval of the mean (1.96 sd / √n); None for fewer than two numbers.

        It is NaN if one of the numbers is not finite.
        """
        if self.count < 2:
            return None
        return 1.96 * math.sqrt(self.squares / (self.count - 1)) / math.sqrt(self.count)

    def to_json(self) -> dict[str, float]:
        """Return the summary as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Any) -> RunningSummary:
        """Return the summary that `to_json` was called on, or of a list of all numbers, as older checkpoints have it.

        Raises `KeyError`, `TypeError` or `ValueError` for anything else.
        """
        if not isinstance(saved, Mapping):
            return cls().extended([float(value) for value in saved])
        sums = [float(saved[name]) for name in ("total", "total_error", "squares", "squares_error")]
        count = saved["count"]
        if type(count) is not int or count < 1 or sums[2] < 0:
            raise ValueError(f"{saved} is not the summary of any numbers")
        return cls(count, *sums)


def _two_part_sum(values: Iterable[float]) -> tuple[float, float]:
    """Return the correctly rounded sum of numbers and its rounding error; the error is 0 where the sum is not finite.

    A sum that overflows is infinite, and the sum of both infinities is NaN.
    """
    parts = list(values)
    try:
        total = math.fsum(parts)
    except (OverflowError, ValueError):
        return sum(parts), 0.0
    return (total, math.fsum([*parts, -total])) if math.isfinite(total) else (total, 0.0)
