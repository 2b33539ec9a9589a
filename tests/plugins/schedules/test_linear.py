"""A rate that falls linearly to a floor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.linear import Linear


def factors(steps: int = 8, **options: Any) -> list[float]:
    schedule = Linear(Linear.Config(**options))
    return [schedule.factor(step, step / steps) for step in range(steps)]


def scheduled(make: Any, steps: int = 8) -> list[float]:
    """Return the rates of a schedule of torch, for a first rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_it_is_the_linear_schedule_of_torch(floor: float) -> None:
    def linear(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=floor, total_iters=8)

    assert factors(floor=floor) == pytest.approx(scheduled(linear))
    assert Linear(Linear.Config(floor=floor)).factor(8, 1.0) == floor


def test_without_a_floor_the_factor_is_exactly_the_share_that_is_left() -> None:
    assert factors(7) == [1.0 - step / 7 for step in range(7)]
