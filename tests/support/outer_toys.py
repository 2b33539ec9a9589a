"""Built-in optimisers and schedules beside those of torch, on a quadratic function, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaforge.config.settings import TrainConfig
from metaforge.runs.outer_optimizer import OuterOptimizer

START, TARGET = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
LR = 0.05


def minimised(cls: type[Any], decay: float | None, steps: int = 30, **options: Any) -> Tensor:
    """Return the weights after steps of an optimiser plugin from START on half the squared distance to TARGET."""
    outer = OuterOptimizer(TrainConfig(lr=LR, weight_decay=decay), cls(cls.Config(**options)), {"w": START})
    for _ in range(steps):
        outer.step({"w": outer.snapshot().values["w"] - TARGET}, {}, norm=1.0, factor=1.0)
    return outer.snapshot().values["w"]


def minimised_by_torch(make: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int = 30) -> Tensor:
    """Return the weights after an ordinary loop of torch on the same function."""
    weight = START.clone().requires_grad_()
    optimizer = make([weight])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (weight - TARGET).square().sum()).backward()
        optimizer.step()
    return weight.detach()


def factors(cls: type[Any], steps: int = 8, **options: Any) -> list[float]:
    """Return the factors of a schedule plugin in a run of so many steps."""
    schedule = cls(cls.Config(**options))
    return [schedule.factor(step, step / steps) for step in range(steps)]


def rates_of_torch(make: Callable[[torch.optim.Optimizer], Any], steps: int = 8) -> list[float]:
    """Return the rates of a schedule of torch, for a first rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates
