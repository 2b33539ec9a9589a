"""A rate that falls along half a cosine to a floor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.cosine import Cosine


def factors(steps: int = 8, **options: Any) -> list[float]:
    schedule = Cosine(Cosine.Config(**options))
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
def test_it_is_the_cosine_schedule_of_torch(floor: float) -> None:
    def cosine(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=floor)

    assert factors(floor=floor) == pytest.approx(scheduled(cosine))
    assert Cosine(Cosine.Config(floor=floor)).factor(8, 1.0) == pytest.approx(floor)


def test_without_a_floor_the_bits_are_those_of_the_plain_formula() -> None:
    assert factors(7) == [0.5 * (1.0 + math.cos(math.pi * (step / 7))) for step in range(7)]
