"""A learning rate that falls along half a cosine over the run.

Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (arXiv 1608.03983), without
restarts.
"""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from metaforge.authoring import Options, Schedule


class CosineOptions(Options):
    """Options of a cosine decay."""

    floor: float = Field(0.0, ge=0, le=1, description="factor of the learning rate at the end of the run")


class Cosine(Schedule):
    """A learning rate that falls along half a cosine from 1 to `floor` times `train.lr` over the run."""

    Config = CosineOptions
    reference: ClassVar[str] = "Loshchilov, Hutter 2017, arXiv 1608.03983, equation 5"

    def __init__(self, config: CosineOptions) -> None:
        self.floor = config.floor

    def factor(self, step: int, share: float) -> float:
        """Return floor + (1 - floor) (1 + cos(π share)) / 2."""
        return self.floor + (1.0 - self.floor) * (0.5 * (1.0 + math.cos(math.pi * share)))
