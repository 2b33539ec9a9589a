"""A third party's ordinary pretraining: a linear classifier of all training classes, and class means in evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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
    TaskSpec,
    cross_entropy,
    fold_in,
    normal,
    one_hot,
    score,
)
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses


class Baseline(ModelLearner):
    """Learns to tell all training classes apart, and classifies a query by the nearest class mean of its features."""

    Config = Options
    tags: ClassVar[Tags] = Tags(needs=frozenset({"backbone"}), fixed_ways=False, uses_classes=True, varied_shots=True)
    defaults: ClassVar = {"classification": {"train": {"lr": 3e-3, "ways": 20, "shots": 1, "queries": 1, "tasks": 2}}}

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")
        self.ways, self.classes, self.features = parts.spec.outputs, parts.spec.classes, self.model.features

    def init(self, key: Key) -> Params:
        head = normal(fold_in(key, "head"), (self.classes, self.features)) / self.features**0.5
        return super().init(key) | {"head.weight": head, "head.bias": torch.zeros(self.classes)}

    def embed(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        return F.normalize(self.model(values, x, at).flatten(1), dim=-1)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Tensor:
        members = one_hot(support.y, self.ways, support.x.dtype)
        features = self.embed(values, support.x, Pass(key, 0, "support"))
        return members.T @ features / members.sum(0).unsqueeze(-1)

    def predict(self, values: Params, fast: Any, x: Tensor, *, key: Key | None = None) -> Tensor:
        return 10 * self.embed(values, x, Pass(key, 0, "query")) @ F.normalize(fast, dim=-1).T

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        support, query, state = self.model.observe_task(values, task, key)
        features = torch.cat([support, query])
        logits = features @ values["head.weight"].T + values["head.bias"]
        labels = torch.as_tensor(task.classes)[torch.cat([task.support.y, task.query.y])]
        return cross_entropy(logits, labels), Aux({"score": score("classification", logits, labels).detach()}, state)


@parametrize_with_checks([Baseline])
def test_the_learner_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


def test_pretraining_on_all_classes_helps_with_new_ones(tmp_path: Path) -> None:
    data = {"name": "glyphs", "train": 40, "test": 40, "writers": 16}
    registry = scan().with_plugin("learner", "baseline", Baseline)
    common: dict[str, Any] = {"registry": registry, "backbone": "mlp", "seed": 1}
    run = metaforge.train("baseline", data, steps=60, out=tmp_path / "run", **common)
    start = metaforge.train("baseline", data, steps=1, out=tmp_path / "start", **common)
    assert run.values["head.weight"].shape[0] == run.spec("test").classes == 40
    after, before = (one.evaluate(tasks=60)["results"][0]["scores"][0] for one in (run, start))
    # Chance is 0.2.
    assert after["mean"] - after["ci"] > 0.4
    assert after["mean"] > before["mean"] + before["ci"]
    assert metaforge.load(run.folder, registry=registry).learner().init(torch.tensor(0)).keys() == run.values.keys()


class Unnumbered(ToyClasses):
    """Toy tasks whose classes have no numbers."""

    def spec(self, *arguments: Any) -> TaskSpec:
        return dataclasses.replace(super().spec(*arguments), classes=0)


def test_a_data_set_without_class_numbers_is_refused_by_name(tmp_path: Path) -> None:
    registry = scan().with_plugin("learner", "baseline", Baseline).with_plugin("dataset", "unnumbered", Unnumbered)
    with pytest.raises(ConfigError, match=r"'baseline' reads the numbers of classes, but .* 'unnumbered' have none"):
        metaforge.train("baseline", "unnumbered", backbone="mlp", steps=1, out=tmp_path / "run", registry=registry)
