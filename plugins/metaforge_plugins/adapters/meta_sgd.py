"""Meta-SGD: a meta-learned learning rate for every weight.

Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017 (arXiv 1707.09835).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from metaforge.authoring import Adapter, InnerStep, Key, Options, Params


class MetaSGDOptions(Options):
    """Options of Meta-SGD."""

    lr: float = Field(
        0.4, ge=-10, le=10, description="initial learning rate of every weight; rates may become negative"
    )


class MetaSGD(Adapter):
    """Gradient descent with a meta-learned learning rate for every weight."""

    Config = MetaSGDOptions
    reference: ClassVar[str] = "Li, Zhou, Chen, Li 2017, arXiv 1707.09835, equation 2"

    def __init__(self, config: MetaSGDOptions) -> None:
        self.lr = config.lr

    def init(self, params: Params, key: Key) -> Params:
        """Return the learning rates `rate.<name>`, each of the shape of its parameter."""
        return {f"rate.{name}": torch.full_like(value, self.lr) for name, value in params.items()}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α ∘ g, and the state unchanged."""
        return {name: meta[f"rate.{name}"] * g for name, g in grads.items()}, state
