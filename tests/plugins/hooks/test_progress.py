"""Tests of the progress hook: lines of text without a terminal, a bar on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from metaforge.authoring import REGRESSION, Kind, RunInfo, Scale
from metaforge.config.settings import RunConfig
from metaforge.runs.hook_calls import hook_manager
from metaforge_plugins.hooks import progress

METRICS = {"loss": 0.5, "score": 0.9, "score_ci": 0.02, "tasks_per_second": 123.4, "elapsed": 1.0, "eta": 65.0}


def run_info(kind: Kind = "classification", **train: Any) -> RunInfo:
    return RunInfo(None, RunConfig.model_validate({"train": train}).model_dump(), kind)


def shown(terminal: bool, run: RunInfo, steps: int, interval: float = 5.0) -> str:
    # Size and type are set, so that the test does not depend on the terminal that it runs in.
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, _environ={"TERM": "xterm"}
    )
    plugin = progress.Progress(progress.Progress.Config(interval=interval), console=console)
    manager = hook_manager([plugin])
    manager.hook.metaforge_run_start(run=run)
    for step in range(1, steps + 1):
        manager.hook.metaforge_after_step(run=run, step=step, metrics={**METRICS, "elapsed": float(step)})
    manager.hook.metaforge_after_eval(run=run, step=steps, split="validation", metrics={"score": 0.8, "score_ci": 0.01})
    manager.hook.metaforge_run_end(run=run, outcome="finished", error=None)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_lines_are_printed_every_few_seconds_without_a_terminal() -> None:
    text = shown(terminal=False, run=run_info(steps=12), steps=12)
    lines = text.splitlines()
    assert lines[0] == "step 1/12  loss 0.5  accuracy 90.0 ± 2.0 %  123 tasks/s  1:05 left"
    assert [line.split()[1] for line in lines[:-1]] == ["1/12", "6/12", "11/12", "12/12"]
    assert lines[-1] == "validation at step 12: accuracy 80.0 ± 1.0 %"
    assert "\x1b" not in text


def test_a_bar_is_shown_on_a_terminal() -> None:
    text = shown(terminal=True, run=run_info(steps=3), steps=3)
    assert "step 3/3" in text
    assert "accuracy 90.0 ± 2.0 %" in text
    assert "validation at step 3: accuracy 80.0" in text


def test_a_regression_score_is_not_a_percentage() -> None:
    assert "score 0.9 ± 0.02" in shown(terminal=False, run=run_info("regression", steps=1), steps=1)


def test_scores_have_the_name_the_unit_and_the_direction_of_their_kind() -> None:
    assert "label accuracy 90.0 ± 2.0 %" in shown(terminal=False, run=run_info("multi-label", steps=1), steps=1)
    degrees = replace(REGRESSION, name="angles", scale=Scale("angle", higher_is_better=False, unit="°"))
    assert "score 0.9 ± 0.02 °  123 tasks/s" in shown(terminal=False, run=run_info(degrees, steps=1), steps=1)


def test_completed_fraction_and_duration() -> None:
    assert progress.completed_fraction(run_info(steps=10), 5, {"elapsed": 9.0}) == 0.5
    assert progress.completed_fraction(run_info(steps=10, budget=10), 5, {"elapsed": 9.0}) == 0.9
    assert progress.completed_fraction(run_info(steps=0), 0, {}) == 1.0
    assert progress.duration(5.4) == "0:05"
    assert progress.duration(3725) == "1:02:05"
    assert progress.duration(float("nan")) == progress.duration(float("inf")) == "?"
