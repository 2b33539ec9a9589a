"""Adam as inner optimiser, whose second moment can be carried from task to task, as in Reptile.

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (arXiv 1412.6980); with β1 = 0 in Reptile
(Nichol, Achiam, Schulman 2018, arXiv 1803.02999, section 6).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import Adapter, InnerStep, Key, Options, Params


class AdamOptions(Options):
    """Options of Adam."""

    lr: float = Field(1e-3, ge=0, description="inner learning rate")
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment, which starts at zero in each task")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the square root of the second moment")
    carry: bool = Field(True, description="carry the second moment from task to task, averaged over a batch")


class Adam(Adapter):
    """Adam, whose second moment can be carried from task to task."""

    Config = AdamOptions
    reference: ClassVar[str] = "Kingma, Ba 2015, arXiv 1412.6980, algorithm 1"

    def __init__(self, config: AdamOptions) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return zero second moments `state.second.<name>` and a zero step count if they are carried, else `{}`."""
        if not self.config.carry:
            return {}
        zero = next(iter(params.values())).new_zeros(())
        moments = {f"state.second.{name}": torch.zeros_like(value) for name, value in params.items()}
        return moments | {"state.count": zero}

    def start(self, meta: Params, params: Params) -> Params:
        """Return zero first moments, and the second moments and step count of the last task, or zeros."""
        first = {f"first.{name}": torch.zeros_like(value) for name, value in params.items()}
        if self.config.carry:
            return first | {name.removeprefix("state."): value for name, value in meta.items()}
        zero = next(iter(params.values())).new_zeros(())
        return first | {f"second.{n}": torch.zeros_like(v) for n, v in params.items()} | {"count": zero}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α m̂ / (√v̂ + ε), and the new moments and step count."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        new, updates = {"count": state["count"] + 1}, {}
        unbias = (1 - beta2 ** new["count"]).sqrt()
        rate = self.config.lr / (1 - beta1 ** (step.number + 1))
        for name, g in grads.items():
            new[f"first.{name}"] = first = beta1 * state[f"first.{name}"] + (1 - beta1) * g
            new[f"second.{name}"] = second = beta2 * state[f"second.{name}"] + (1 - beta2) * g * g
            updates[name] = rate * first / (root(second) / unbias + self.config.eps)
        return updates, new

    def carry(self, meta: Params, state: Params) -> Params:
        """Return the changes of the second moments and of the step count."""
        return {name: state[name.removeprefix("state.")].detach() - value for name, value in meta.items()}


def root(x: Tensor) -> Tensor:
    """Return √x with the derivative 0 at x = 0, where the true derivative is infinite.

    The gradient of a dead unit is exactly zero, and so is its second moment.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
