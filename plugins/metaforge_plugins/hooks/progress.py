"""Shows the progress of a run: a progress bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import rich.progress
from pydantic import Field
from rich.console import Console

from metaforge import hookimpl
from metaforge.authoring import Hook, Options, Outcome, RunInfo, Scale, note_stream


class Progress(Hook):
    """Prints progress to stderr: step, loss, score with its 95 % confidence interval, tasks per second, time left."""

    class Config(Options):
        interval: float = Field(default=5.0, ge=0, description="Seconds between lines if stderr is not a terminal.")

    def __init__(self, config: Config, *, console: Console | None = None) -> None:
        self.config = config
        self.console = console if console is not None else Console(file=note_stream())
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        self._last_printed = -1.0

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Show the bar if stderr is a terminal."""
        self._last_printed = -1.0
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[steps]}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[metrics]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0, steps="starting", metrics="")
            self._bar.start()

    @hookimpl
    def metaforge_after_step(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
        """Update the bar, or print a line if the last one was printed at least `interval` seconds ago."""
        steps = f"step {step}/{run.settings['train']['steps']}"
        text = "  ".join(formatted(run, metrics))
        if self._bar is not None:
            self._bar.update(self._task, completed=completed_fraction(run, step, metrics), steps=steps, metrics=text)
            return
        elapsed = metrics.get("elapsed", 0.0)
        due = self._last_printed < 0 or elapsed - self._last_printed >= self.config.interval
        if due or step == run.settings["train"]["steps"]:
            self._last_printed = elapsed
            self._print(f"{steps}  {text}")

    @hookimpl
    def metaforge_after_eval(self, run: RunInfo, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Print the metrics of an evaluation; they stay on the screen above the bar."""
        self._print(f"{split} at step {step}: {'  '.join(formatted(run, metrics))}")

    @hookimpl
    def metaforge_run_end(self, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        console = self._bar.console if self._bar is not None else self.console
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def formatted(run: RunInfo, metrics: Mapping[str, float]) -> list[str]:
    """Return the metrics to show, each as text with its unit."""
    parts = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4g}")
    if "score" in metrics:
        parts.append(score(run.kind.scale, metrics))
    if "tasks_per_second" in metrics:
        parts.append(f"{metrics['tasks_per_second']:.3g} tasks/s")
    if "eta" in metrics:
        parts.append(f"{duration(metrics['eta'])} left")
    return parts


def score(scale: Scale, metrics: Mapping[str, float]) -> str:
    """Return the score with its confidence interval: a share as a percentage, any other score as a number."""
    value, half = metrics["score"], metrics.get("score_ci")
    if scale.percent:
        interval = "" if half is None else f" ± {100 * half:.1f}"
        return f"{scale.metric} {100 * value:.1f}{interval} %"
    interval = "" if half is None else f" ± {half:.2g}"
    return f"score {value:.4g}{interval} {scale.unit}".rstrip()


def completed_fraction(run: RunInfo, step: int, metrics: Mapping[str, float]) -> float:
    """Return the completed fraction of the run, by steps or by time, whichever is larger."""
    steps, budget = run.settings["train"]["steps"], run.settings["train"]["budget"]
    by_steps = step / steps if steps else 1.0
    by_time = metrics.get("elapsed", 0.0) / budget if budget else 0.0
    return min(1.0, max(by_steps, by_time))


def duration(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`, or a question mark if it is unknown."""
    if not 0 <= seconds < 1e7:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
