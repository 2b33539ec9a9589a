"""SGD: gradient descent with one fixed learning rate, the inner update of MAML."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from metaforge.authoring import Adapter, InnerStep, Options, Params


class SGDOptions(Options):
    """Options of plain gradient descent."""

    lr: float = Field(0.4, ge=0, description="inner learning rate")


class SGD(Adapter):
    """Gradient descent with one fixed learning rate."""

    Config = SGDOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, equation 1"

    def __init__(self, config: SGDOptions) -> None:
        self.lr = config.lr

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α g, and the state unchanged."""
        return {name: self.lr * g for name, g in grads.items()}, state
