"""A rate that falls at milestones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.multi_step import MultiStep
from outer_toys import factors, rates_of_torch


def test_it_is_the_multi_step_schedule_of_torch() -> None:
    def multi_step(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5], gamma=0.5)

    assert factors(MultiStep, milestones=(2, 5), gamma=0.5) == pytest.approx(rates_of_torch(multi_step))
    assert factors(MultiStep, milestones=(5, 2), gamma=0.5) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert factors(MultiStep, milestones=()) == [1.0] * 8
