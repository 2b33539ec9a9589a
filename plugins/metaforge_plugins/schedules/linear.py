"""A learning rate that falls linearly over the run."""

from __future__ import annotations

from pydantic import Field

from metaforge.authoring import Options, Schedule


class LinearOptions(Options):
    """Options of a linear decay."""

    floor: float = Field(0.0, ge=0, le=1, description="factor of the learning rate at the end of the run")


class Linear(Schedule):
    """A learning rate that falls linearly from 1 to `floor` times `train.lr` over the run."""

    Config = LinearOptions

    def __init__(self, config: LinearOptions) -> None:
        self.floor = config.floor

    def factor(self, step: int, share: float) -> float:
        """Return floor + (1 - floor) (1 - share)."""
        return self.floor + (1.0 - self.floor) * (1.0 - share)
