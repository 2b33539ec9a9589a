"""RMSprop: gradients divided by the root of a running mean of their squares.

Tieleman, Hinton, "Lecture 6.5: RMSProp", COURSERA: Neural Networks for Machine Learning, 2012.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from metaforge.authoring import Optimizer, Options


class RMSpropOptions(Options):
    """Options of RMSprop."""

    alpha: float = Field(0.99, ge=0, lt=1, description="decay of the running mean of the squared gradients")
    eps: float = Field(1e-8, ge=0, description="added to the square root of the mean of the squares")
    momentum: float = Field(0.0, ge=0, lt=1, description="decay of the running sum of the scaled gradients")
    centered: bool = Field(False, description="whether the squares are those of the deviations from a running mean")


class RMSprop(Optimizer):
    """Gradient descent whose steps are divided by the root of a running mean of the squared gradients."""

    Config = RMSpropOptions
    reference: ClassVar[str] = "Tieleman, Hinton 2012, lecture 6.5"

    def __init__(self, config: RMSpropOptions) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's RMSprop, whose weight decay is added to the gradient."""
        c = self.config
        return torch.optim.RMSprop(groups, alpha=c.alpha, eps=c.eps, momentum=c.momentum, centered=c.centered)
