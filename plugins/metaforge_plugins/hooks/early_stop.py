"""The end of a run whose validations no longer get better."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metaforge import hookimpl
from metaforge.authoring import Component, Options, RunInfo
from metaforge.errors import ConfigError, nearest


class EarlyStop(Component):
    """Stops a run after a number of validations in a row that bring nothing better, and says on stderr why."""

    class Config(Options):
        metric: str = Field(
            default="val_score", min_length=1, description="Figure to watch; it is looked at after each validation."
        )
        patience: int = Field(default=5, ge=1, description="Validations in a row without a better figure that end it.")
        mode: Literal["auto", "max", "min"] = Field(
            default="auto",
            description="Which figure is better, the largest or the smallest; auto: the largest accuracy, the smallest"
            " of anything else.",
        )
        min_delta: float = Field(
            default=0.0, ge=0, allow_inf_nan=False, description="By how much a figure must be better to count."
        )

    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self._best: float | None = None
        self._waited = 0
        self._validated = 0

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Refuse a run that is never validated."""
        if not run.settings["train"]["validate_every"]:
            raise ConfigError(
                "The hook that stops a run early needs validations, and this run makes none.",
                where="train.validate_every is 0",
                remedy="set train.validate_every=100, say, or leave the hook out",
            )
        self._validated = 0
        if run.start == 0:
            self._best, self._waited = None, 0

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str) -> None:
        """Note that there is something new to judge."""
        if split == "val":
            self._validated = step

    @hookimpl
    def metaforge_should_stop(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Judge a validation; True ends the run."""
        if step != self._validated:
            return None
        value = self._value(metrics)
        if self._better(value, larger=self._larger(run)):
            self._best, self._waited = value, 0
            return None
        self._waited += 1
        if self._waited < self.config.patience:
            return None
        best = "no finite one so far" if self._best is None else f"the best is {self._best:.4g}"
        by = f" by {self.config.min_delta:.4g}" if self.config.min_delta else ""
        print(  # noqa: T201
            f"Stopped early at step {step}: {self.config.metric} is {value:.4g}, {best};"
            f" nothing better{by} in {self._waited} validation{'s' if self._waited > 1 else ''}.",
            file=sys.stderr,
        )
        return True

    def state(self) -> Mapping[str, Any]:
        """Return the best figure so far and the validations since."""
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the best figure and the validations since."""
        self._best, self._waited = state["best"], state["waited"]

    def _value(self, metrics: Mapping[str, float]) -> float:
        if self.config.metric not in metrics:
            raise ConfigError(
                f"There is no figure {self.config.metric!r} to stop by.{nearest(self.config.metric, metrics)}",
                where="hooks.early-stop.metric",
                remedy=f"the figures after a validation are {', '.join(metrics)}",
            )
        return metrics[self.config.metric]

    def _better(self, value: float, *, larger: bool) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if larger else self._best - value
        return gain > self.config.min_delta

    def _larger(self, run: RunInfo) -> bool:
        if self.config.mode != "auto":
            return self.config.mode == "max"
        return run.kind == "classification" and self.config.metric in ("score", "val_score")
