"""RMSprop as outer optimiser: the steps of torch's RMSprop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge.config.settings import TrainConfig
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge_plugins.optimizers.rmsprop import RMSprop

START, TARGET = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])


def ours(decay: float | None, steps: int = 30, **options: Any) -> torch.Tensor:
    outer = OuterOptimizer(TrainConfig(lr=0.05, weight_decay=decay), RMSprop(RMSprop.Config(**options)), {"w": START})
    for _ in range(steps):
        outer.step({"w": outer.snapshot().values["w"] - TARGET}, {}, norm=1.0, factor=1.0)
    return outer.snapshot().values["w"]


def plain(make: Any, steps: int = 30) -> torch.Tensor:
    """Minimise the same quadratic function with an ordinary loop of torch."""
    weight = START.clone().requires_grad_()
    optimizer = make([weight])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (weight - TARGET).square().sum()).backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("options", [{}, {"alpha": 0.9, "eps": 1e-3}, {"momentum": 0.5, "centered": True}])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_the_rmsprop_of_torch(options: dict[str, Any], decay: float) -> None:
    expected = plain(lambda params: torch.optim.RMSprop(params, lr=0.05, weight_decay=decay, **options))
    torch.testing.assert_close(ours(decay, **options), expected)
