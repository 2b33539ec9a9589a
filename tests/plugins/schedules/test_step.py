"""A rate that falls in equal intervals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.step import Step


def factors(steps: int = 8, **options: Any) -> list[float]:
    schedule = Step(Step.Config(**options))
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


def test_it_is_the_step_schedule_of_torch() -> None:
    def step(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)

    assert factors(every=3, gamma=0.5) == pytest.approx(scheduled(step))
    assert factors(every=3, gamma=0.5)[:4] == [1.0, 1.0, 1.0, 0.5]
