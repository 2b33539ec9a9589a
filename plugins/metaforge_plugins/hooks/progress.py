"""A live progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import rich.progress
from pydantic import Field
from rich.console import Console

from metaforge import hookimpl
from metaforge.authoring import Component, Options, Outcome, RunInfo


class Progress(Component):
    """Shows on stderr how a run gets on: step, loss, score with its 95 % interval, tasks per second, time left."""

    class Config(Options):
        interval: float = Field(default=5.0, ge=0, description="Seconds between lines where stderr is no terminal.")

    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}

    def __init__(self, config: Config, *, console: Console | None = None) -> None:
        self.config = config
        self.console = console if console is not None else Console(stderr=True)
        self._bar: rich.progress.Progress | None = None
        self._row = rich.progress.TaskID(0)
        self._last = -1.0

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Open the bar where there is a terminal to draw it on."""
        self._last = -1.0
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[steps]}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[figures]}"),
                console=self.console,
                transient=True,
            )
            self._row = self._bar.add_task("", total=1.0, steps="starting", figures="")
            self._bar.start()

    @hookimpl
    def metaforge_after_step(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line when the last one is old enough."""
        steps = f"step {step}/{run.settings['train']['steps']}"
        text = "  ".join(figures(run, metrics))
        if self._bar is not None:
            self._bar.update(self._row, completed=share(run, step, metrics), steps=steps, figures=text)
            return
        elapsed = metrics.get("elapsed", 0.0)
        if self._last < 0 or elapsed - self._last >= self.config.interval or step == run.settings["train"]["steps"]:
            self._last = elapsed
            self._say(f"{steps}  {text}")

    @hookimpl
    def metaforge_after_eval(self, run: RunInfo, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Print the figures of an evaluation; they stay on the screen above the bar."""
        self._say(f"{split} at step {step}: {'  '.join(figures(run, metrics))}")

    @hookimpl
    def metaforge_run_end(self, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
        """Close the bar, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        console = self._bar.console if self._bar is not None else self.console
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def figures(run: RunInfo, metrics: Mapping[str, float]) -> list[str]:
    """Return the figures to show, each with its unit."""
    found = []
    if "loss" in metrics:
        found.append(f"loss {metrics['loss']:.4g}")
    if "score" in metrics:
        found.append(accuracy(metrics) if run.kind == "classification" else score(metrics))
    if "tasks_per_second" in metrics:
        found.append(f"{metrics['tasks_per_second']:.3g} tasks/s")
    if "eta" in metrics:
        found.append(f"{clock(metrics['eta'])} left")
    return found


def accuracy(metrics: Mapping[str, float]) -> str:
    """Return a score that is a share as a percentage with its interval."""
    interval = f" ± {100 * metrics['score_ci']:.1f}" if "score_ci" in metrics else ""
    return f"accuracy {100 * metrics['score']:.1f}{interval} %"


def score(metrics: Mapping[str, float]) -> str:
    """Return any other score with its interval."""
    interval = f" ± {metrics['score_ci']:.2g}" if "score_ci" in metrics else ""
    return f"score {metrics['score']:.4g}{interval}"


def share(run: RunInfo, step: int, metrics: Mapping[str, float]) -> float:
    """Return how much of the run is done, by steps or by time, whichever ends it first."""
    steps, budget = run.settings["train"]["steps"], run.settings["train"]["budget"]
    by_steps = step / steps if steps else 1.0
    by_time = metrics.get("elapsed", 0.0) / budget if budget else 0.0
    return min(1.0, max(by_steps, by_time))


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`; a question mark where it is unknown."""
    if not 0 <= seconds < 1e7:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
