"""The metrics of a run: means, confidence intervals, speed and time left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import metaforge
from metaforge import hookimpl
from metaforge.authoring import Aux, Key, Params, Task
from metaforge.config.settings import TrainConfig
from metaforge.errors import PluginError
from metaforge.registry.scan import scan
from metaforge.results.statistics import mean_and_ci
from metaforge.runs import training
from metaforge.runs import training_metrics as training_metrics_module
from metaforge.runs.running_summary import RunningSummary
from metaforge.runs.state import State
from metaforge.runs.training_metrics import MOST_METRICS, extended_window, score_metrics, training_metrics
from metaforge.testing.toy import ToyClasses, ToyLearner
from quick_runs import trained


def window(by_task: Mapping[str, list[float]]) -> dict[str, RunningSummary]:
    return {name: RunningSummary().extended(values) for name, values in by_task.items()}


def test_validation_intervals_equal_those_of_evaluation(tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []

    class Collect:
        @hookimpl
        def metaforge_after_eval(self, metrics: Mapping[str, float]) -> None:
            seen.append(metrics)

    settings = {"train": {"validate_every": 1, "validate_tasks": 4}, "evaluate": {"seed": 9}}
    run = trained(tmp_path / "run", steps=1, settings=settings, hooks=[Collect()])
    learner, scores = run.learner(run.spec("val")), []
    for index in range(4):
        task = run.task(index, split="val", seed=9)
        error = learner.predict(run.values, learner.adapt(run.values, task.support), task.query.x) - task.query.y
        scores.append(float(error.square().mean()))
    expected = mean_and_ci(scores)
    assert seen[0]["score"] == pytest.approx(expected["mean"], rel=1e-5)
    assert seen[0]["score_ci"] == pytest.approx(expected["ci"], rel=1e-4)


def test_a_non_finite_score_is_recorded_as_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = training.training_metrics
    monkeypatch.setattr(training, "training_metrics", lambda *state: figures(*state) | {"score": math.nan})
    metaforge.train("maml", "sinusoid", steps=1, tasks=2, out=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["score"]) == ("finished", None)


def test_metrics_are_means_over_the_window_with_speed_and_time_left() -> None:
    by_task = {"loss": [1.0, 3.0], "score": [0.0, 1.0], "own": [5.0]}
    state = State(step=4, seconds=2.0, window=window(by_task), skipped=(2,))
    found = training_metrics(state, TrainConfig(steps=10, tasks=3), 10)
    assert (found["loss"], found["score"], found["own"], found["skipped"]) == (2.0, 0.5, 5.0, 1.0)
    assert found["score_ci"] == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)
    assert (found["elapsed"], found["eta"], found["tasks_per_second"]) == (2.0, 3.0, 6.0)


def test_a_budget_limits_the_time_left() -> None:
    state = State(step=4, seconds=2.0, window=window({"loss": [1.0]}))
    assert training_metrics(state, TrainConfig(steps=1000, budget=3.0), 1000)["eta"] == pytest.approx(1.0)


def test_a_learner_without_scores_has_no_score() -> None:
    state = State(step=1, seconds=1.0, window=window({"loss": [1.0]}))
    assert "score" not in training_metrics(state, TrainConfig(), 10)


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.5], {"score": 0.5}), ([0.25, 0.25], {"score": 0.25, "score_ci": 0})]
)
def test_one_score_has_no_interval(scores: list[float], expected: dict[str, float]) -> None:
    assert score_metrics(scores) == expected


def test_a_score_that_is_not_finite_makes_the_mean_nan() -> None:
    assert math.isnan(score_metrics([0.5, math.nan])["score"])


def test_a_metric_that_is_missing_in_a_step_keeps_its_mean() -> None:
    first = extended_window({}, {"loss": [1.0], "now and then": [4.0]})
    second = extended_window(first, {"loss": [3.0]})
    assert {name: summary.mean for name, summary in second.items()} == {"loss": 2.0, "now and then": 4.0}


class Inventive(ToyLearner):
    """Reports a metric of another name in every step."""

    steps = 0

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        Inventive.steps += 1
        return loss, Aux({**aux.metrics, f"of call {Inventive.steps}": loss.detach()}, aux.state)


def test_a_learner_that_invents_names_of_metrics_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_metrics_module, "MOST_METRICS", 6)
    registry = scan().with_plugin("learner", "inventive", Inventive).with_plugin("dataset", "toys", ToyClasses)
    settings = {"engine": {"threads": 1, "plan": "vmap"}, "train": {"log_every": 5}, "adapters": {"sgd": {}}}
    options = {"dataset": "toys", "backbone": "mlp", "tasks": 2, "registry": registry, "settings": settings}
    with pytest.raises(PluginError, match=r"The learner 'inventive' .* more than 6 names of metrics") as caught:
        metaforge.train("inventive", steps=9, out=tmp_path / "long", **options)
    assert "in its metrics at outer step 5" in str(caught.value)
    assert read_status(tmp_path / "long")["exit_code"] == 4
    # The state of the step before is saved.
    assert [path.name for path in (tmp_path / "long" / "ckpt").glob("step-*")] == ["step-0000004"]
    settings["train"] = {"log_every": 3}
    assert metaforge.train("inventive", steps=9, out=tmp_path / "often", **options).summary["outcome"] == "finished"
    assert MOST_METRICS == 1000


def read_status(folder: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((folder / "status.json").read_text("utf-8"))
    return status
