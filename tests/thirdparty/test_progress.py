"""A learner whose loss is annealed during the training, and one that is first order before it is second order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metaforge
from metaforge.authoring import (
    SHARE,
    Aux,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Learner,
    Params,
    Parts,
    Task,
    sum_of,
    training_progress,
)
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses, ToyNet
from tests.reliability.interruptions import StopAfter

DEFAULTS = {kind: {"adapters": {"sgd": {}}} for kind in ("classification", "regression")}


class MultiStep(InnerLoopLearner):
    """Minimises the query losses after every inner step, whose weights move to the last step during the training.

    Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, multi-step loss optimisation.
    """

    Config = InnerLoopOptions
    defaults: ClassVar = DEFAULTS

    def init(self, key: Key) -> Params:
        return super().init(key) | training_progress()

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        earlier = (1 - values[SHARE]) / self.config.steps
        losses = []
        for steps in range(1, self.config.steps + 1):
            fast, state = self.descend(values, task.support, steps, key)
            loss, aux = self.query_loss(values, fast, task, key, state)
            losses.append(earlier * loss)
        losses.append(values[SHARE] * loss)
        return sum_of(losses), aux


class Plain(InnerLoopLearner):
    """The query loss after the inner steps, of second order."""

    Config = InnerLoopOptions
    defaults: ClassVar = DEFAULTS

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)


class FirstOrder(Plain):
    """The same of first order."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config.model_copy(update={"adjoint": "first-order"}), parts)


class FirstThenSecond(Plain):
    """First order in the first half of the training, second order in the other (derivative-order annealing)."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.early = FirstOrder(config, parts)

    def during(self, share: float) -> Learner:
        return self.early if share < 0.5 else self


@parametrize_with_checks([MultiStep, FirstThenSecond])
def test_the_learners_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


REGISTRY = scan().with_plugin("dataset", "toy", ToyClasses).with_plugin("backbone", "toy-net", ToyNet)
for _name, _cls in {"multi-step": MultiStep, "phases": FirstThenSecond, "first": FirstOrder}.items():
    REGISTRY = REGISTRY.with_plugin("learner", _name, _cls)
SETTINGS: dict[str, Any] = {
    "learner": {"steps": 2},
    "train": {"log_every": 1, "queries": 3},
    "engine": {"threads": 1, "dtype": "float64"},
}


def trained(learner: str, out: Path, *, stop: int | None = None, **more: Any) -> metaforge.Run | None:
    options = {"backbone": "toy-net", "adapters": ["sgd"], "steps": 8, "tasks": 2, "registry": REGISTRY}
    hooks = [] if stop is None else [StopAfter(stop)]
    try:
        return metaforge.train(learner, "toy", out=out, settings=SETTINGS, hooks=hooks, **(options | more))
    except KeyboardInterrupt:
        assert stop is not None
        return None


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["multi-step", "phases"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "whole")
    assert whole is not None
    for stop in (2, 6):
        trained(name, tmp_path / f"{stop}", stop=stop)
        again = run_training(
            configuration(tmp_path / f"{stop}", [Layer("keyword", {})], REGISTRY),
            folder=tmp_path / f"{stop}",
            resuming=True,
        )
        assert again.summary["resumed"]["exact"]
        assert all(torch.equal(value, again.values[entry]) for entry, value in whole.values.items())
        assert losses(tmp_path / f"{stop}") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("name", "differs"), [("multi-step", True), ("phases", True), ("first", False)])
def test_a_longer_run_is_exact_only_if_nothing_depends_on_its_length(name: str, differs: bool, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "whole")
    trained(name, tmp_path / "run", steps=4)
    longer = configuration(tmp_path / "run", [Layer("keyword", {"train": {"steps": 8}})], REGISTRY)
    again = run_training(longer, folder=tmp_path / "run", resuming=True)
    assert whole is not None
    assert again.summary["resumed"]["differences"] == (["train.steps: 4 -> 8"] if differs else [])
    assert again.summary["resumed"]["exact"] is not differs
    assert all(torch.equal(value, again.values[entry]) for entry, value in whole.values.items()) is not differs


def test_the_phases_are_those_of_the_learners_that_they_name(tmp_path: Path) -> None:
    trained("phases", tmp_path / "phases")
    trained("first", tmp_path / "first")
    phases, first = losses(tmp_path / "phases"), losses(tmp_path / "first")
    # The fifth step is the first of second order: its loss is still the same, and the values after it are not.
    assert phases[:5] == first[:5]
    assert all(one != other for one, other in zip(phases[5:], first[5:], strict=True))


def test_the_weights_of_the_losses_follow_the_training(tmp_path: Path) -> None:
    run = trained("multi-step", tmp_path / "run")
    assert run is not None
    assert run.values[SHARE] == 1
    learner, task, key = run.learner(), run.task(), torch.tensor(3)

    def at(share: float) -> Tensor:
        return learner.loss(run.values | {SHARE: torch.tensor(share, dtype=torch.float64)}, task, key)[0]

    torch.testing.assert_close(at(0.25), 0.75 * at(0.0) + 0.25 * at(1.0))
    assert at(0.0) != at(1.0)
