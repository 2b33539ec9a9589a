"""A rate that falls along half a cosine to a floor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metaforge_plugins.schedules.cosine import Cosine
from outer_toys import factors, rates_of_torch


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_it_is_the_cosine_schedule_of_torch(floor: float) -> None:
    def cosine(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=floor)

    assert factors(Cosine, floor=floor) == pytest.approx(rates_of_torch(cosine))
    assert Cosine(Cosine.Config(floor=floor)).factor(8, 1.0) == pytest.approx(floor)


def test_without_a_floor_the_bits_are_those_of_the_plain_formula() -> None:
    assert factors(Cosine, 7) == [0.5 * (1.0 + math.cos(math.pi * (step / 7))) for step in range(7)]
