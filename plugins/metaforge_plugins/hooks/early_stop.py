"""Early stopping: ends a run whose validation metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from metaforge import hookimpl
from metaforge.authoring import Hook, Options, RunInfo, note_stream
from metaforge.errors import ConfigError, nearest


class EarlyStop(Hook):
    """Stops a run when a metric has not improved for a number of validations, and prints the reason to stderr."""

    class Config(Options):
        metric: str = Field(
            default="val_score", min_length=1, description="Metric to monitor; it is read after each validation."
        )
        patience: int = Field(default=5, ge=1, description="Validations in a row without improvement that end the run.")
        mode: Literal["auto", "max", "min"] = Field(
            default="auto",
            description="Whether larger (max) or smaller (min) values are better; auto: max for scores such as"
            " accuracies, min for errors and all other metrics.",
        )
        min_delta: float = Field(
            default=0.0, ge=0, allow_inf_nan=False, description="Smallest change that counts as an improvement."
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        self._best: float | None = None
        self._waited = 0
        self._validated = 0

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Raise `ConfigError` for a run without validations."""
        if not run.settings["train"]["validate_every"]:
            raise ConfigError(
                "Early stopping needs validations, but this run has none.",
                where="train.validate_every is 0",
                remedy="set train.validate_every, for example to 100, or remove the hook early-stop",
            )
        self._validated = 0
        if run.start == 0:
            self._best, self._waited = None, 0

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str) -> None:
        """Record that this step was validated."""
        if split == "val":
            self._validated = step

    @hookimpl
    def metaforge_should_stop(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Return True, after a validation, if the metric has not improved for `patience` validations."""
        if step != self._validated:
            return None
        value = self._value(metrics)
        if self._improves(value, larger=self._larger(run)):
            self._best, self._waited = value, 0
            return None
        self._waited += 1
        if self._waited < self.config.patience:
            return None
        best = "without a finite value so far" if self._best is None else f"the best is {self._best:.4g}"
        by = f" by more than {self.config.min_delta:.4g}" if self.config.min_delta else ""
        print(
            f"Stopped early at step {step}: {self.config.metric} is {value:.4g}, {best};"
            f" no improvement{by} in {self._waited} validation{'s' if self._waited > 1 else ''}.",
            file=note_stream(),
        )
        return True

    def state(self) -> Mapping[str, Any]:
        """Return the best value so far and the number of validations since."""
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the best value and the number of validations since."""
        self._best, self._waited = state["best"], state["waited"]

    def _value(self, metrics: Mapping[str, float]) -> float:
        if self.config.metric not in metrics:
            raise ConfigError(
                f"There is no metric {self.config.metric!r}.{nearest(self.config.metric, metrics)}",
                where="hooks.early-stop.metric",
                remedy=f"use one of the metrics that are available after a validation: {', '.join(metrics)}",
            )
        return metrics[self.config.metric]

    def _improves(self, value: float, *, larger: bool) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if larger else self._best - value
        return gain > self.config.min_delta

    def _larger(self, run: RunInfo) -> bool:
        if self.config.mode != "auto":
            return self.config.mode == "max"
        return run.kind.scale.higher_is_better and self.config.metric in ("score", "val_score")
