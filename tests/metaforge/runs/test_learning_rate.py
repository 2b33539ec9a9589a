"""The factor on the learning rate: the schedule's, times that of the warm-up in the first steps."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metaforge.authoring.protocols import Schedule
from metaforge.errors import ContractError
from metaforge.runs.learning_rate import rate_factor


class Returning(Schedule):
    """Returns what a function of step and share returns."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def factor(self, step: int, share: float) -> float:
        factor: float = self.config(step, share)
        return factor


def test_the_warm_up_rises_linearly_and_then_leaves_the_schedule_alone() -> None:
    falling = Returning(lambda step, share: 1.0 - share)
    factors = [rate_factor(falling, 3, step, step / 8) for step in range(8)]
    assert factors == pytest.approx([1 / 4, 2 / 4 * 7 / 8, 3 / 4 * 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [rate_factor(falling, 0, step, step / 8) for step in range(8)] == [1 - step / 8 for step in range(8)]


@pytest.mark.parametrize("factor", [math.nan, math.inf, -0.1, True, "1", None])
def test_a_factor_that_is_no_number_of_at_least_zero_is_refused(factor: Any) -> None:
    with pytest.raises(ContractError, match="factor returns"):
        rate_factor(Returning(lambda step, share: factor), 0, 0, 0.0)
