"""SGD: gradient descent, with momentum if asked for.

The momentum after Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
learning", ICML 2013.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator

from metaforge.authoring import Optimizer, Options, fused


class SGDOptions(Options):
    """Options of gradient descent."""

    momentum: float = Field(0.0, ge=0, lt=1, description="decay of the running sum of gradients that is subtracted")
    nesterov: bool = Field(False, description="whether the gradient is added to the running sum once more (Nesterov)")

    @model_validator(mode="after")
    def _require_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum larger than 0")
        return self


class SGD(Optimizer):
    """Gradient descent with optional momentum, plain or after Nesterov."""

    Config = SGDOptions
    reference: ClassVar[str] = "Sutskever, Martens, Dahl, Hinton 2013"

    def __init__(self, config: SGDOptions) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD, whose weight decay is added to the gradient."""
        momentum, nesterov = self.config.momentum, self.config.nesterov
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=fused(groups))
