"""A learning rate that falls by a factor after every so many outer steps."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from metaforge.authoring import Options, Schedule


class StepOptions(Options):
    """Options of a decay in equal intervals."""

    gamma: float = Field(0.1, ge=0, le=1, description="factor on the learning rate after each interval")
    every: int = Field(1000, ge=1, description="outer steps of an interval")


class Step(Schedule):
    """A learning rate that is multiplied by `gamma` after every `every` outer steps."""

    Config = StepOptions
    uses_share: ClassVar[bool] = False

    def __init__(self, config: StepOptions) -> None:
        self.config = config

    def factor(self, step: int, share: float) -> float:
        """Return gamma to the power of the number of complete intervals."""
        return float(self.config.gamma ** (step // self.config.every))
