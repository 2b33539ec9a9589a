"""Tests of early stopping: what counts as an improvement, how long it waits, and resumed runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import metaforge
from hooking import drive, run_of
from metaforge.authoring import REGRESSION, Kind, Scale
from metaforge.errors import ConfigError
from metaforge.runs.hook_calls import hook_manager, restore_states, states
from metaforge_plugins.hooks.early_stop import EarlyStop

# Two kinds of a third party, of which one has an error and one a gain.
ERROR, GAIN = (
    replace(REGRESSION, name=name, scale=Scale(name, higher_is_better=higher))
    for name, higher in (("error", False), ("gain", True))
)


def made(**options: Any) -> EarlyStop:
    return EarlyStop(EarlyStop.Config(**options))


def stop_of(
    plugin: EarlyStop, scores: Sequence[float], *, dataset: str = "glyphs", start: int = 0, loss: float = 1.0
) -> int | None:
    """Return the step at which a run stops that is validated at every second step with these scores."""
    run = run_of(None, start=start, dataset=dataset, validate_every=2)
    validations = {start + 2 * (i + 1): {"score": score} for i, score in enumerate(scores)}
    steps = [(step, {"loss": loss}) for step in range(start + 1, start + 2 * len(scores) + 1)]
    return drive(plugin, run, steps, validations=validations)


@pytest.mark.parametrize(
    ("options", "scores", "stop"),
    [
        ({"patience": 2}, [0.5, 0.6, 0.6, 0.5, 0.9], 8),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.7, 0.1], None),
        ({"patience": 1}, [0.5, 0.5], 4),
        ({"patience": 2, "mode": "min"}, [0.5, 0.4, 0.3, 0.2, 0.2, 0.2], 12),
        ({"patience": 1, "min_delta": 0.1}, [0.5, 0.59], 4),
        ({"patience": 1, "min_delta": 0.1}, [0.5, 0.61], None),
        ({"patience": 1, "mode": "min", "min_delta": 0.1}, [0.5, 0.41], 4),
        # Improvements are measured from the last value that counted as better, not from the previous value.
        ({"patience": 3, "min_delta": 0.1}, [0.5, 0.55, 0.59, 0.61, 0.65], None),
        ({"patience": 2}, [math.nan, 0.5, math.nan, math.inf], 8),
        ({"patience": 2}, [math.nan, math.nan], 4),
        ({"patience": 2, "metric": "loss"}, [0.1, 0.2, 0.3], 6),
    ],
)
def test_it_stops_after_patience_validations_without_improvement(options: Any, scores: Any, stop: int | None) -> None:
    assert stop_of(made(**options), scores) == stop


@pytest.mark.parametrize(("kind", "stop"), [("interaction", 6), ("multi-label", 6), (ERROR, None), (GAIN, 6)])
def test_the_automatic_mode_is_the_direction_of_the_kind(kind: Kind, stop: int | None) -> None:
    run = replace(run_of(None, validate_every=2), kind=kind)
    validations = {2 * i: {"score": score} for i, score in enumerate([-3.0, -4.0, -5.0], start=1)}
    steps = [(step, {"loss": 1.0}) for step in range(1, 7)]
    assert drive(made(patience=2), run, steps, validations=validations) == stop


def test_the_automatic_mode_depends_on_the_metric() -> None:
    falling = [0.5, 0.4, 0.3]
    assert stop_of(made(patience=2), falling) == 6
    assert stop_of(made(patience=2), falling, dataset="sinusoid") is None
    assert stop_of(made(patience=2, mode="max"), falling, dataset="sinusoid") == 6
    run, losses = run_of(None, validate_every=1), [(step, {"loss": 1 / step}) for step in (1, 2, 3)]
    validations = {step: {"score": 0.5} for step, _ in losses}
    assert drive(made(patience=2, metric="loss"), run, losses, validations=validations) is None
    assert drive(made(patience=2, metric="loss", mode="max"), run, losses, validations=validations) == 3


def test_it_prints_why_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def printed() -> str:
        out, err = capsys.readouterr()
        assert out == ""
        return err

    plugin = made(patience=2)
    stop_of(plugin, [0.75, 0.5, 0.25])
    assert printed() == (
        "Stopped early at step 6: val_score is 0.25, the best is 0.75; no improvement in 2 validations.\n"
    )
    plugin = made(patience=1)
    stop_of(plugin, [math.nan])
    assert printed().endswith("val_score is nan, without a finite value so far; no improvement in 1 validation.\n")
    plugin = made(patience=1, min_delta=0.125)
    stop_of(plugin, [0.5, 0.6])
    assert printed().endswith("val_score is 0.6, the best is 0.5; no improvement by more than 0.125 in 1 validation.\n")
    plugin = made()
    stop_of(plugin, [0.75, 0.5, 0.25])
    assert printed() == ""


def test_only_validations_can_stop_a_run() -> None:
    plugin, run = made(patience=1, metric="loss", mode="max"), run_of(None, validate_every=9)
    assert drive(plugin, run, [(step, {"loss": -float(step)}) for step in range(1, 9)]) is None
    plugin.restore({"best": 9.0, "waited": 0})
    hook = hook_manager([plugin]).hook
    hook.metaforge_after_eval(run=run, step=8, split="test", metrics={"score": 0.0})
    assert hook.metaforge_should_stop(run=run, step=8, metrics={"loss": 0.0}) is None
    hook.metaforge_after_eval(run=run, step=8, split="val", metrics={"score": 0.0})
    assert hook.metaforge_should_stop(run=run, step=8, metrics={"loss": 0.0}) is True


def test_best_and_patience_survive_a_resume() -> None:
    before, after = made(patience=3), made(patience=3)
    assert stop_of(before, [0.5, 0.9, 0.8]) is None
    saved = states({"early-stop": before})
    assert saved == {"early-stop": {"best": 0.9, "waited": 1}}
    restore_states({"early-stop": after}, saved)
    assert stop_of(after, [0.85, 0.86, 0.1], start=6) == 10
    # Without the restored state it would not stop; nor does a new run with the same instance.
    assert stop_of(made(patience=3), [0.85, 0.86, 0.1], start=6) is None
    assert stop_of(after, [0.1, 0.2, 0.3]) is None


def test_a_run_without_validation_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs validations") as caught:
        drive(made(), run_of(None, validate_every=0), [])
    assert "train.validate_every" in caught.value.remedy


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no metric 'val_scroe'\. Did you mean 'val_score'") as caught:
        stop_of(made(metric="val_scroe"), [0.5])
    assert "loss, val_score" in caught.value.remedy


def test_a_run_is_stopped(tmp_path: Path) -> None:
    settings = {
        "train": {"validate_every": 1, "validate_tasks": 2, "tasks": 1},
        "hooks": {"early-stop": {"patience": 1, "min_delta": 1e9}, "csv": {}, "jsonl": {}},
    }
    run = metaforge.train("cnp", "sinusoid", steps=9, settings=settings, out=tmp_path / "run")
    assert run.folder is not None
    assert (run.summary["outcome"], run.summary["steps"]) == ("stopped", 2)
    assert len((run.folder / "steps.jsonl").read_text().splitlines()) == 4
    assert (run.folder / "metrics.csv").read_text().startswith("step,split,metric,value\n1,train,")
