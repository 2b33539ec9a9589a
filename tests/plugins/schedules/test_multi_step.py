"""A rate that falls at milestones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.multi_step import MultiStep


def factors(steps: int = 8, **options: Any) -> list[float]:
    schedule = MultiStep(MultiStep.Config(**options))
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


def test_it_is_the_multi_step_schedule_of_torch() -> None:
    def multi_step(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5], gamma=0.5)

    assert factors(milestones=(2, 5), gamma=0.5) == pytest.approx(scheduled(multi_step))
    assert factors(milestones=(5, 2), gamma=0.5) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert factors(milestones=()) == [1.0] * 8
