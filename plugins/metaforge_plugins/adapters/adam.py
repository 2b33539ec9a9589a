"""Adam as inner optimiser, with the second moment carried from task to task as Reptile's authors do.

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (arXiv 1412.6980); with β1 = 0 in Reptile
(Nichol, Achiam, Schulman 2018, arXiv 1803.02999, section 6).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import Adapter, Options, Params


class AdamOptions(Options):
    """Options of Adam."""

    lr: float = Field(1e-3, ge=0, description="inner learning rate")
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment, which starts at zero in each task")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    carry: bool = Field(True, description="keep the second moment from task to task (averaged over a batch of tasks)")


class Adam(Adapter):
    """Adam; its second moment can outlive the task."""

    Config = AdamOptions
    reference: ClassVar[str] = "Kingma, Ba 2015, arXiv 1412.6980, algorithm 1"

    def __init__(self, config: AdamOptions) -> None:
        self.config = config

    def init(self, params: Params) -> Params:
        """Return the second moments `state.second.*` and the number of steps taken, all zero, if they are carried."""
        if not self.config.carry:
            return {}
        some = next(iter(params.values()))
        moments = {f"state.second.{name}": torch.zeros_like(value) for name, value in params.items()}
        return moments | {"state.count": some.new_zeros(())}

    def start(self, meta: Params, params: Params) -> Params:
        """Return zero first moments, and the second moments as the last task left them."""
        first = {f"first.{name}": torch.zeros_like(value) for name, value in params.items()}
        if self.config.carry:
            return first | {name.removeprefix("state."): value for name, value in meta.items()}
        some = next(iter(params.values()))
        return first | {f"second.{n}": torch.zeros_like(v) for n, v in params.items()} | {"count": some.new_zeros(())}

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return α m̂ / (√v̂ + ε)."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        new, updates = {"count": state["count"] + 1}, {}
        unbias = (1 - beta2 ** new["count"]).sqrt()
        rate = self.config.lr / (1 - beta1 ** (step + 1))
        for name, g in grads.items():
            new[f"first.{name}"] = first = beta1 * state[f"first.{name}"] + (1 - beta1) * g
            new[f"second.{name}"] = second = beta2 * state[f"second.{name}"] + (1 - beta2) * g * g
            updates[name] = rate * first / (root(second) / unbias + self.config.eps)
        return updates, new

    def carry(self, meta: Params, state: Params) -> Params:
        """Return the change of the second moments and of the count."""
        return {name: state[name.removeprefix("state.")].detach() - value for name, value in meta.items()}


def root(x: Tensor) -> Tensor:
    """Return √x with derivative 0 at 0, where the true one is infinite: a dead unit has a gradient of exactly zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
