"""The hook specs and the manager: order, validation, and the built-in progress display."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from metaforge import hookimpl, hooks
from metaforge.config import RunConfig
from metaforge.errors import PluginError
from metaforge.hooks import RunInfo, hook_manager
from metaforge_plugins.hooks import progress

METRICS = {"loss": 0.5, "score": 0.9, "score_ci": 0.02, "tasks_per_second": 123.4, "elapsed": 1.0, "eta": 65.0}


def run_info(kind: str = "classification", **train: Any) -> RunInfo:
    dataset = SimpleNamespace(cls=SimpleNamespace(kind=kind))
    config: Any = SimpleNamespace(run=RunConfig.model_validate({"train": train}), dataset=dataset)
    return RunInfo(None, config)


class Listener:
    def __init__(self, name: str, heard: list[str], answer: bool | None = None) -> None:
        self.name, self.heard, self.answer = name, heard, answer

    @hookimpl
    def metaforge_after_step(self, step: int) -> None:
        self.heard.append(f"{self.name}{step}")

    @hookimpl
    def metaforge_should_stop(self) -> bool | None:
        self.heard.append(f"{self.name}?")
        return self.answer

    @hookimpl
    def metaforge_run_facts(self) -> Mapping[str, str]:
        return {"name": self.name}


def test_the_eight_hooks() -> None:
    assert hooks.names() == (
        "metaforge_run_start",
        "metaforge_before_step",
        "metaforge_after_step",
        "metaforge_after_eval",
        "metaforge_should_stop",
        "metaforge_checkpoint",
        "metaforge_run_end",
        "metaforge_run_facts",
    )


def test_plugins_are_called_in_the_order_given() -> None:
    heard: list[str] = []
    manager = hook_manager([Listener(name, heard) for name in "abc"])
    manager.hook.metaforge_after_step(run=run_info(), step=1, metrics={})
    assert heard == ["a1", "b1", "c1"]
    assert manager.hook.metaforge_run_facts(run=run_info()) == [{"name": "a"}, {"name": "b"}, {"name": "c"}]


def test_the_first_answer_decides_whether_to_stop() -> None:
    heard: list[str] = []
    manager = hook_manager([Listener("a", heard), Listener("b", heard, answer=True), Listener("c", heard)])
    assert manager.hook.metaforge_should_stop(run=run_info(), step=1, metrics={}) is True
    assert heard == ["a?", "b?"]


def test_managers_share_nothing() -> None:
    first, second = hook_manager([Listener("a", [])]), hook_manager([])
    assert len(first.get_plugins()) == 1
    assert not second.get_plugins()


def test_a_hook_that_does_not_exist_is_refused() -> None:
    class Wrong:
        @hookimpl
        def metaforge_after_stpe(self, step: int) -> None: ...

    with pytest.raises(PluginError, match="Wrong does not fit the hook specs"):
        hook_manager([Wrong()])


def test_an_argument_that_does_not_exist_is_refused() -> None:
    class Wrong:
        @hookimpl
        def metaforge_after_step(self, epoch: int) -> None: ...

    with pytest.raises(PluginError, match="epoch"):
        hook_manager([Wrong()])


def shown(terminal: bool, run: RunInfo, steps: int, interval: float = 5.0) -> str:
    # A terminal of its own size and kind: the test must not depend on the one that it runs in.
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


def test_progress_prints_plain_lines_now_and_then_without_a_terminal() -> None:
    text = shown(terminal=False, run=run_info(steps=12), steps=12)
    lines = text.splitlines()
    assert lines[0] == "step 1/12  loss 0.5  accuracy 90.0 ± 2.0 %  123 tasks/s  1:05 left"
    assert [line.split()[1] for line in lines[:-1]] == ["1/12", "6/12", "11/12", "12/12"]
    assert lines[-1] == "validation at step 12: accuracy 80.0 ± 1.0 %"
    assert "\x1b" not in text


def test_progress_draws_a_bar_on_a_terminal() -> None:
    text = shown(terminal=True, run=run_info(steps=3), steps=3)
    assert "step 3/3" in text
    assert "accuracy 90.0 ± 2.0 %" in text
    assert "validation at step 3: accuracy 80.0" in text


def test_progress_shows_a_regression_score_as_it_is() -> None:
    assert "score 0.9 ± 0.02" in shown(terminal=False, run=run_info("regression", steps=1), steps=1)


def test_share_and_clock() -> None:
    assert progress.share(run_info(steps=10), 5, {"elapsed": 9.0}) == 0.5
    assert progress.share(run_info(steps=10, budget=10), 5, {"elapsed": 9.0}) == 0.9
    assert progress.share(run_info(steps=0), 0, {}) == 1.0
    assert progress.clock(5.4) == "0:05"
    assert progress.clock(3725) == "1:02:05"
    assert progress.clock(float("nan")) == progress.clock(float("inf")) == "?"
