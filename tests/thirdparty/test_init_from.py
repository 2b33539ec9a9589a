"""A learner of a third party pretrains a network, and another learner takes over its body and keeps it as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metaforge
from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    cross_entropy,
    score,
)
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses

BODY = "model.0.*"


class Pretraining(ModelLearner):
    """Classifies all examples of a task with a linear head that all tasks share."""

    Config = Options
    tags: ClassVar[Tags] = Tags(needs=frozenset({"backbone"}))

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts, norm="running", outputs=parts.spec.outputs)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        return {}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return self.model(values, x, Pass(key))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        logits, state = self.model.observe(values, task.query.x, Pass(key))
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, state)


@parametrize_with_checks([Subject("learner", "pretraining", Pretraining)])
def test_the_learner_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


SETTINGS: dict[str, Any] = {"task": {"ways": 3, "queries": 4}, "engine": {"threads": 1}, "evaluate": {"tasks": 20}}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return scan().with_plugin("learner", "pretraining", Pretraining).with_plugin("dataset", "toy", ToyClasses)


@pytest.fixture(scope="module")
def body(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """Return the values of a short pretraining, whose run is beside the others."""
    folder = tmp_path_factory.getbasetemp() / "pretrained"
    run = metaforge.train(
        "pretraining", "toy", backbone=torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)),
        steps=5, tasks=4, out=folder, settings=SETTINGS, registry=registry,
    )  # fmt: skip
    return run.values


@pytest.mark.parametrize("learner", ["maml", "reptile"])
def test_the_body_is_taken_over_and_kept_to_the_bit(
    learner: str, registry: Registry, body: Params, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {**SETTINGS, "learner": {"norm": "running"}, "train": {"init_patterns": [BODY], "weight_decay": 0.1}}
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))
    run = metaforge.train(
        learner, "toy", backbone=network, steps=4, tasks=4, out=tmp_path / "run", settings=settings, registry=registry,
        init_from=tmp_path_factory.getbasetemp() / "pretrained", freeze=[BODY],
    )  # fmt: skip
    kept = [name for name in run.values if name.removeprefix("state.").startswith("model.0.")]
    assert len(kept) == 6
    assert all(torch.equal(run.values[name].view(torch.int32), body[name].view(torch.int32)) for name in kept)
    assert not torch.equal(run.values["model.2.weight"], body["model.2.weight"])
    facts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert set(facts["init_from"]["taken"]) == set(facts["frozen"]) == set(kept)
    # The loaded run adapts the same values: the head alone.
    loaded = metaforge.load(tmp_path / "run", backbone=network, registry=registry)
    fast = loaded.learner().adapt(loaded.values, loaded.task().support)
    assert {name for name in fast if name in run.values} == {"model.2.weight", "model.2.bias"}
