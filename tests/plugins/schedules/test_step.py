"""A rate that falls in equal intervals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.step import Step
from outer_toys import factors, rates_of_torch


def test_it_is_the_step_schedule_of_torch() -> None:
    def step(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)

    assert factors(Step, every=3, gamma=0.5) == pytest.approx(rates_of_torch(step))
    assert factors(Step, every=3, gamma=0.5)[:4] == [1.0, 1.0, 1.0, 0.5]
