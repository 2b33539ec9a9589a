"""A third party's learner and data set of unequal classes: lists of shapes, varied tasks, and resuming to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import metaforge
from metaforge import hookimpl
from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    RunInfo,
    Tags,
    Task,
    TaskShape,
    cross_entropy,
    one_hot,
    score,
)
from metaforge.data import ClassPool, ImageDataset, check_split
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.registry.scan import scan
from metaforge.results.records import read_evaluations
from metaforge.testing import Check, Subject, parametrize_with_checks

SIZES = {"train": (30, 3), "val": (12, 9), "test": (25, 5)}


class Kernel(ModelLearner):
    """Adds up the similarities of a query to the support examples of each class, each class with equal weight."""

    Config = Options
    tags: ClassVar[Tags] = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")
        self.ways = parts.spec.outputs

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Examples:
        return Examples(self.embed(values, support.x, Pass(key, 0, "support")), support.y)

    def predict(self, values: Params, fast: Any, x: Tensor, *, key: Key | None = None) -> Tensor:
        return self.logits(self.embed(values, x, Pass(key, 0, "query")), *fast)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.logits(query.flatten(1), support.flatten(1), task.support.y)
        accuracy = score("classification", logits, task.query.y)
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy.detach()}, state)

    def embed(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        return self.model(values, x, at).flatten(1)

    def logits(self, query: Tensor, support: Tensor, y: Tensor) -> Tensor:
        distances = (query.unsqueeze(1) - support.unsqueeze(0)).square().sum(-1)
        members = one_hot(y, self.ways, query.dtype)
        # The mean over a class's own examples: classes with many of them are not preferred.
        return torch.logsumexp(
            (members / members.sum(0)).clamp_min(1e-30).log().T.unsqueeze(0) - distances.unsqueeze(1), -1
        )


class Textures(ImageDataset):
    """Noisy images of random patterns; the classes have from 3 to 30 images."""

    Config = Options
    defaults: ClassVar = {"classification": {"backbone": {"name": "mlp", "widths": [16]}}}

    def __init__(self, config: Options, *, root: Path) -> None:
        self.pools: dict[str, ClassPool] = {}

    def pool(self, split: str) -> ClassPool:
        check_split(split, [*SIZES], "textures")
        if split not in self.pools:
            classes, least = SIZES[split]
            random = np.random.default_rng([*SIZES].index(split))
            sizes = random.integers(least, 31, classes)
            patterns = random.uniform(40, 215, (classes, 1, 1, 6, 6))
            images = random.normal(patterns, 55, (classes, 30, 1, 6, 6)).clip(0, 255).astype(np.uint8)
            self.pools[split] = ClassPool(images, [f"{split}/{i}" for i in range(classes)], sizes=sizes)
        return self.pools[split]

    def facts(self, split: str) -> dict[str, str | int | float]:
        sizes = self.pool(split).class_sizes
        return {"classes": len(sizes), "images": int(sizes.sum())}


REGISTRY = scan().with_plugin("learner", "kernel", Kernel).with_plugin("dataset", "textures", Textures)
VARIED = {"task": {"sampler": "varied"}, "varied": {"min_ways": 3, "max_ways": 8, "support": 40, "queries": 4}}


@parametrize_with_checks([Kernel, Subject("dataset", "textures", Textures, shape=TaskShape(3, 1, 2))])
def test_both_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


class Shapes:
    """Records the shapes of the tasks of every step."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[int, int, int]]] = []

    @hookimpl
    def metaforge_before_step(self, run: RunInfo, step: int, batches: Any) -> None:
        def shape(task: Task) -> tuple[int, int, int]:
            return torch.as_tensor(task.classes).shape[1], task.support.y.shape[1], task.query.y.shape[1]

        assert sum(len(task.support.x) for task in batches) == run.settings["train"]["tasks"]
        self.steps.append([shape(task) for task in batches])


def train(out: Path, settings: dict[str, Any], **more: Any) -> Any:
    settings = {**settings, "train": {"tasks": 4, "lr": 3e-3, **settings.get("train", {})}}
    return metaforge.train("kernel", "textures", settings=settings, out=out, registry=REGISTRY, **more)


def test_lists_of_shapes_have_one_shape_per_step(tmp_path: Path) -> None:
    shapes = Shapes()
    settings = {"task": {"queries": 2}, "train": {"ways": [3, 5], "shots": [1, 2]}}
    run = train(tmp_path / "run", settings, steps=40, hooks=[shapes])
    assert {len(step) for step in shapes.steps} == {1}
    assert {step[0] for step in shapes.steps} == {(w, w * s, w * 2) for w in (3, 5) for s in (1, 2)}
    after = run.evaluate(tasks=100)["results"][0]
    assert (after["ways"], after["shots"], "varied" in after) == (5, 1, False)
    assert after["scores"][0]["mean"] > 0.4
    assert metaforge.load(run.folder, registry=REGISTRY).values.keys() == run.values.keys()


def missing(self: Textures, split: str) -> ClassPool:
    raise DataError("The images are missing.")


def test_varied_tasks_in_training_and_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shapes()
    run = train(tmp_path / "run", {**VARIED, "train": {"validate_every": 20}}, steps=40, hooks=[shapes])
    seen = [shape for step in shapes.steps for shape in step]
    assert max(len(step) for step in shapes.steps) > 1
    assert {ways for ways, _, _ in seen} == {*range(3, 9)}
    assert len({support for _, support, _ in seen}) > 20
    assert max(support for _, support, _ in seen) <= 40
    after = run.evaluate(tasks=100)["results"][0]
    assert after["scores"][0]["mean"] > after["chance"]["mean"] + 0.15
    (record,) = read_evaluations(run.folder)
    assert (record["ways"], record["shots"], record["queries"], record["varied"]["ways"]) == (0, 0, 0, [3, 8])
    assert [round(1 / chance) for chance in record["per_task"]["chance"]] == record["per_task"]["ways"]
    assert len(record["per_task"]["scores"]["after"]) == len(record["per_task"]["support"]) == 100
    assert "3 to 8 ways" in (run.folder / "report.md").read_text("utf-8")
    names = {path.name for path in (run.folder / "pictures").iterdir()}
    assert {"scores-test-varied.png", "episode-test.png"} <= names
    # What a learner needs of the data set is in the folder.
    monkeypatch.setattr(Textures, "pool", missing)
    alone = metaforge.load(run.folder, registry=REGISTRY)
    spec = alone.evaluated_spec()
    assert (spec.outputs, spec.shape, spec.classes) == (8, (8, 0, 0), 30)
    learner = alone.learner(replace(spec, outputs=2, shape=TaskShape(2, 0, 0)))
    fast = learner.adapt(alone.values, Examples(torch.rand(5, 1, 6, 6), torch.tensor([0, 0, 0, 1, 0])))
    assert learner.predict(alone.values, fast, torch.rand(3, 1, 6, 6)).shape == (3, 2)
    monkeypatch.undo()
    # Numbers of shots ask for tasks of a fixed shape; a run on those can be evaluated on varied tasks.
    assert run.evaluate(tasks=10, ways=3, shots=[1])["results"][0]["ways"] == 3
    fixed = train(tmp_path / "fixed", {"task": {"queries": 2}, "varied": VARIED["varied"]}, steps=1)
    assert fixed.evaluate(tasks=10, sampler="varied")["results"][0]["varied"]["ways"][0] >= 3


@pytest.mark.parametrize(
    "settings",
    [
        VARIED,
        {**VARIED, "evaluate": {"shots": [3]}},
        {**VARIED, "train": {"sampler": "fixed"}},
        {"task": {"queries": 2}, "evaluate": {"shots": [3]}},
    ],
)
def test_a_run_stands_alone(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path / "run", settings, steps=1)
    fixed, evaluated = run.spec(), run.evaluated_spec()
    monkeypatch.setattr(Textures, "pool", missing)
    alone = metaforge.load(run.folder, registry=REGISTRY)
    assert (alone.spec(), alone.evaluated_spec()) == (fixed, evaluated)
    support = Examples(torch.rand(5, 1, 6, 6), torch.arange(5))
    learner = alone.learner()
    fast = learner.adapt(alone.values, support)
    assert learner.predict(alone.values, fast, torch.rand(3, 1, 6, 6)).shape == (3, 5)


@pytest.mark.parametrize(
    "settings", [VARIED, {"task": {"queries": 2}, "train": {"ways": [3, 5], "shots": [1, 2]}}], ids=["varied", "lists"]
)
def test_a_resumed_run_has_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    from metaforge.config.sources import Layer
    from metaforge.runs.resume import configuration
    from metaforge.runs.training import run_training

    whole = train(tmp_path / "whole", settings, steps=14)
    half = train(tmp_path / "half", settings, steps=7)
    longer = configuration(half.folder, [Layer("test", {"train": {"steps": 14}})], REGISTRY)
    resumed = run_training(longer, folder=half.folder, resuming=True)
    assert all(torch.equal(value, resumed.values[name]) for name, value in whole.values.items())
    rows = [
        [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert rows[0][-1]["step"] == rows[1][-1]["step"] == 14


@pytest.mark.parametrize(
    ("learner", "dataset", "settings", "message"),
    [
        ("maml", "textures", {"train": {"ways": [3, 5]}}, r"'maml' has one output per class, .*\[3, 5\] ways"),
        ("maml", "textures", VARIED, "'maml' has one output per class, so it cannot take tasks of 3 to 8 ways"),
        ("mann", "textures", VARIED, "'mann' does not take tasks whose classes have different numbers"),
        ("cnp", "sinusoid", {"task": {"sampler": "varied"}}, "'sinusoid' gives no sizes of the classes"),
        ("maml", "sinusoid", {"task": {"sampler": "varied", "ways": 2}, "varied": {"min_ways": 2, "max_ways": 2}},
         "'sinusoid' gives no sizes of the classes"),
        ("kernel", "textures", {**VARIED, "engine": {"compile": "on"}}, "varied shapes cannot be compiled"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    learner: str, dataset: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        metaforge.train(learner, dataset, settings=settings, steps=1, out=tmp_path / "run", registry=REGISTRY)


def test_a_split_with_too_few_classes_is_refused(tmp_path: Path) -> None:
    settings = {**VARIED, "varied": {"min_ways": 13, "max_ways": 20}, "train": {"validate_every": 1}}
    with pytest.raises(DataError, match="the split has 12 classes"):
        train(tmp_path / "run", settings, steps=1)


def test_a_learner_of_fixed_ways_takes_varied_shots(tmp_path: Path) -> None:
    settings = {**VARIED, "task": {"sampler": "varied", "ways": 4}}
    settings["varied"] = {"min_ways": 4, "max_ways": 4, "support": 20, "queries": 2}
    settings["train"] = {"tasks": 2}
    run = metaforge.train("maml", "textures", settings=settings, steps=3, out=tmp_path / "run", registry=REGISTRY)
    assert run.evaluate(tasks=10)["results"][0]["varied"]["ways"] == [4, 4]


class Naming(Kernel):
    """Logs the score under a second name that has the number of classes."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(metrics={**aux.metrics, f"score_{self.ways}": aux.metrics["score"]})


@pytest.mark.parametrize(("tasks", "accumulate"), [(1, 3), (3, 1)])
def test_metrics_whose_names_depend_on_the_shape_are_refused(tasks: int, accumulate: int, tmp_path: Path) -> None:
    settings = {**VARIED, "train": {"tasks": tasks, "accumulate": accumulate}}
    registry = REGISTRY.with_plugin("learner", "naming", Naming)
    with pytest.raises(PluginError, match="tasks of two shapes have different metrics: score_") as caught:
        metaforge.train("naming", "textures", settings=settings, steps=3, out=tmp_path / "run", registry=registry)
    assert "The learner 'naming'" in caught.value.what
    assert "in its loss at outer step" in caught.value.what
