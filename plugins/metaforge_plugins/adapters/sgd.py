"""SGD: one fixed rate for all weights and steps; MAML's inner update."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from metaforge.authoring import Adapter, Options, Params


class SGDOptions(Options):
    """Options of plain gradient descent."""

    lr: float = Field(0.4, ge=0, description="inner learning rate, for a mean loss")


class SGD(Adapter):
    """Gradient descent with one fixed rate."""

    Config = SGDOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, equation 1"

    def __init__(self, config: SGDOptions) -> None:
        self.lr = config.lr

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return α g."""
        return {name: self.lr * g for name, g in grads.items()}, state
