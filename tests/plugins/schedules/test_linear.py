"""A rate that falls linearly to a floor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.linear import Linear
from outer_toys import factors, rates_of_torch


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_it_is_the_linear_schedule_of_torch(floor: float) -> None:
    def linear(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=floor, total_iters=8)

    assert factors(Linear, floor=floor) == pytest.approx(rates_of_torch(linear))
    assert Linear(Linear.Config(floor=floor)).factor(8, 1.0) == floor


def test_without_a_floor_the_factor_is_exactly_the_share_that_is_left() -> None:
    assert factors(Linear, 7) == [1.0 - step / 7 for step in range(7)]
