"""A learning rate that falls by a factor at each of some outer steps."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from metaforge.authoring import Options, Schedule


class MultiStepOptions(Options):
    """Options of a decay at milestones."""

    gamma: float = Field(0.1, ge=0, le=1, description="factor on the learning rate at each milestone")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (500, 750), description="numbers of outer steps after which the learning rate falls"
    )


class MultiStep(Schedule):
    """A learning rate that is multiplied by `gamma` at each of the `milestones`."""

    Config = MultiStepOptions
    uses_share: ClassVar[bool] = False

    def __init__(self, config: MultiStepOptions) -> None:
        self.config = config

    def factor(self, step: int, share: float) -> float:
        """Return gamma to the power of the number of milestones that are reached."""
        return float(self.config.gamma ** sum(step >= milestone for milestone in self.config.milestones))
