"""A constant learning rate."""

from __future__ import annotations

from typing import ClassVar

from metaforge.authoring import Options, Schedule


class Constant(Schedule):
    """A learning rate that stays the same over the whole run."""

    Config = Options
    uses_share: ClassVar[bool] = False

    def __init__(self, config: Options) -> None: ...

    def factor(self, step: int, share: float) -> float:
        """Return 1."""
        return 1.0
