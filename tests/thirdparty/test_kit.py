"""The conformance kit judges plugins that it could not judge before: one plugin for each case."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

import metaforge
from metaforge.authoring import (
    CLASSIFICATION,
    Adapter,
    Aux,
    Dataset,
    Examples,
    Fast,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Kind,
    Learner,
    Options,
    Params,
    Parts,
    Regularizer,
    Tags,
    Task,
    TaskShape,
    TaskSpec,
    fold_in,
    make_key,
    normal,
    task_kind,
)
from metaforge.errors import DataError
from metaforge.registry.scan import scan
from metaforge.testing import Subject, check_plugin, checks_for
from metaforge.testing.run_checks import Outcome, by_cause
from metaforge.testing.toy import ToyClasses, ToyCurves, ToyDescent, ToyNet

RATE, PULL = 0.3, 1.0


def checked(plugin: type[Any] | Subject, **options: Any) -> dict[str, Outcome]:
    return {outcome.check.name: outcome for outcome in check_plugin(plugin, options=options)}


def check_meta_gradient(plugin: type[Any]) -> None:
    """Run the one check; raise `AssertionError` or `Skipped` unless it passes."""
    subject = Subject.of(plugin)
    (check,) = [check for check in checks_for(subject) if check.name == "meta-gradient"]
    check(subject)


def failed(outcomes: Mapping[str, Outcome]) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome.status == "failed"}


def trained(out: Path, learner: type[Any], dataset: type[Any], **others: Any) -> metaforge.Run:
    """Train a learner with the toy components that it needs for three steps."""
    registry = scan().with_plugin("learner", "mine", learner).with_plugin("dataset", "toy", dataset)
    registry = registry.with_plugin("backbone", "net", ToyNet).with_plugin("adapter", "descent", ToyDescent)
    task = {"ways": 1, "shots": 4, "queries": 4} if not task_kind(dataset.kind).classes else {"ways": 3, "queries": 2}
    settings = {"engine": {"threads": 1, "compile": "off"}, "evaluate": {"tasks": 4}, "task": task}
    return metaforge.train("mine", "toy", steps=3, tasks=2, out=out, settings=settings, registry=registry, **others)


class ImplicitOptions(Options):
    """Options of the implicit learner."""

    steps: int = Field(3, ge=0, le=1000, description="inner steps in training")


class Implicit(Learner):
    """Linear regression that is pulled towards the meta-learned weights, differentiated at the solution."""

    Config = ImplicitOptions
    defaults: ClassVar = {"regression": {}}
    tags: Tags = Tags(kinds=frozenset({"regression"}), adapts=True, fixed_ways=False, converges_at=60)
    pull: ClassVar[float] = PULL

    def __init__(self, config: ImplicitOptions, parts: Parts) -> None:
        self.steps, self.outputs = config.steps, parts.spec.outputs
        self.inputs = int(torch.tensor(parts.spec.x_shape).prod())

    def init(self, key: Key) -> Params:
        return {"w": normal(key, (self.inputs, self.outputs)) / self.inputs}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Tensor:
        x, w = support.x.flatten(1), values["w"]
        for _ in range(self.steps if steps is None else steps):
            gradient = x.T @ (x @ w - support.y) / len(x) + PULL * (w - values["w"])
            w = w - RATE * gradient
        return w

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        return x.flatten(1) @ fast

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        fast = self.adapt({"w": values["w"].detach()}, task.support)
        x, errors = task.query.x.flatten(1), self.predict(values, fast, task.query.x) - task.query.y
        gradient = 2 * x.T @ errors / errors.numel()
        inner = task.support.x.flatten(1)
        hessian = inner.T @ inner / len(inner) + PULL * torch.eye(self.inputs, dtype=x.dtype)
        surrogate = (self.pull * torch.linalg.solve(hessian, gradient).detach() * values["w"]).sum()
        # The value of the loss, with the gradient of the surrogate.
        return errors.square().mean() + surrogate - surrogate.detach(), Aux({})


class Mistaken(Implicit):
    """Forgets half of the pull in its implicit gradient."""

    pull: ClassVar[float] = PULL / 2


class Untold(Implicit):
    """Does not say that its gradient is exact at convergence only."""

    tags: Tags = replace(Implicit.tags, converges_at=0)


def test_an_implicit_gradient_is_checked_at_convergence(tmp_path: Path) -> None:
    assert failed(checked(Implicit)) == set()
    for wrong in (Mistaken, Untold):
        with pytest.raises(AssertionError, match="the meta-gradient differs from finite differences"):
            check_meta_gradient(wrong)
    assert trained(tmp_path / "run", Implicit, ToyCurves).evaluate()["results"][0]["scores"]


class OrderOptions(InnerLoopOptions):
    """Options of the learner of two orders."""

    second_order: bool = Field(True, description="whether the inner steps are differentiated")


class Orders(InnerLoopLearner):
    """Differentiates its inner loop or not, as its option says."""

    Config = OrderOptions
    defaults: ClassVar = {
        kind: {"adapters": {"sgd": {}}, "backbone": {"name": "mlp"}} for kind in ("classification", "regression")
    }
    config: OrderOptions

    def __init__(self, config: OrderOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.tags = replace(self.tags, exact_meta_gradient=config.second_order)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        fast, state = self.descend(values, task.support, self.config.steps, key)
        if not self.config.second_order:
            fast = {name: values[name] + (fast[name] - values[name]).detach() for name in self.adapted}
        return self.query_loss(values, fast, task, key, state)


def test_tags_follow_from_options(tmp_path: Path) -> None:
    check_meta_gradient(Orders)
    first = checked(Orders, second_order=False)
    assert failed(first) == set()
    assert first["meta-gradient"].status == "skipped"
    assert trained(tmp_path / "run", Orders, ToyClasses, backbone="net", adapters=["descent"]).summary["steps"] == 3


class LogGradients(Adapter):
    """A learned optimiser of logarithms of gradients, as of Andrychowicz et al. 2016, appendix A."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        one = next(iter(params.values()))
        return {"size": one.new_tensor(0.05), "sign": one.new_tensor(0.1)}

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: Any) -> tuple[Params, Params]:
        return {name: self.transform(meta, g) for name, g in grads.items()}, state

    def transform(self, meta: Params, g: Tensor) -> Tensor:
        """Return the update of one tensor."""
        is_large = g.abs() >= 4.5e-5
        size = torch.where(is_large, torch.where(is_large, g.abs(), 1.0).log() / 10, -1.0)
        return meta["sign"] * torch.where(is_large, g.sign(), 22e3 * g) * (1 + meta["size"] * size)


class Detaching(LogGradients):
    """Computes logarithms of gradients that it has detached."""

    def transform(self, meta: Params, g: Tensor) -> Tensor:
        return super().transform(meta, g.detach())


class Quivering(LogGradients):
    """Adds a wave to each update that is too short for any finite difference."""

    def transform(self, meta: Params, g: Tensor) -> Tensor:
        return 0.1 * g + 1e-4 * (1e7 * g).sin()


def test_a_rough_loss_is_told_from_a_wrong_gradient(tmp_path: Path) -> None:
    assert failed(checked(LogGradients)) == set()
    with pytest.raises(AssertionError, match="the meta-gradient differs from finite differences"):
        check_meta_gradient(Detaching)
    with pytest.raises(unittest.SkipTest, match="too rough to judge: its finite differences do not converge"):
        check_meta_gradient(Quivering)
    registry = scan().with_plugin("adapter", "logs", LogGradients).with_plugin("dataset", "toy", ToyClasses)
    registry = registry.with_plugin("backbone", "net", ToyNet)
    run = metaforge.train(
        "maml", "toy", backbone="net", adapters=["logs"], steps=2, tasks=2, out=tmp_path / "run", registry=registry
    )
    assert run.summary["steps"] == 2


class OneCause(ToyDescent):
    """Raises in every step."""

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: Any) -> tuple[Params, Params]:
        raise KeyError("momentum")


def test_one_cause_is_one_group() -> None:
    (group,) = by_cause(check_plugin(OneCause))
    assert {"updates", "vectorised", "meta-gradient", "learns"} <= {outcome.check.name for outcome in group}
    assert "adapter 'OneCause' raised KeyError: 'momentum' (test_kit.py, line " in group[0].message


class Limited(ToyClasses):
    """Would take all memory for a task that its `spec` refuses."""

    refused: ClassVar[list[TaskShape]] = []

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        if max(shape) > 3:
            raise DataError(f"{shape} is more than 3 ways, 3 shots and 3 queries.", remedy="use fewer")
        return super().spec(split, shape)

    def class_sizes(self, split: str) -> Sequence[int]:
        return ()  # So that no tasks of other shapes are drawn.

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        if max(shape) > 3:
            self.refused.append(shape)
        return super().sample(split, shape, first, count, seed=seed)


def test_a_task_that_spec_refused_is_not_sampled() -> None:
    assert failed(checked(Limited)) == set()
    too_large = Subject.of(Limited)
    outcomes = checked(replace(too_large, shape=TaskShape(4, 1, 1)))
    assert {"spec", "labels", "episodes", "splits", "apart"} <= failed(outcomes)
    assert Limited.refused == []


class Bandit(Dataset):
    """Tasks whose inputs say nothing: one constant, whatever the class."""

    Config = Options
    kind: ClassVar[Kind] = "classification"

    def __init__(self, config: Options, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        if split not in ("train", "val", "test") or max(shape) > 100:
            raise DataError(f"There are no such tasks: {split!r}, {tuple(shape)}.", remedy="use 100 ways or fewer")
        return TaskSpec(self.kind, (2,), shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        def examples(role: str, per_class: int) -> Examples:
            labels = torch.arange(shape.ways).repeat(per_class)
            keys = [fold_in(make_key(seed, split, first + index), role) for index in range(count)]
            order = torch.stack([normal(key, labels.shape).argsort() for key in keys])
            return Examples(torch.ones(count, len(labels), 2), labels[order])

        return Task(examples("support", shape.shots), examples("query", shape.queries))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {"inputs": "constant"}


class Repeating(Bandit):
    """Has the support examples in its query set, and inputs that tell them apart."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        task = super().sample(split, shape, first, count, seed=seed)
        key = make_key(seed, split, first)
        keys = [make_key(seed, split, first + index) for index in range(count)]
        assert torch.equal(key, keys[0])
        x = torch.stack([normal(key, task.query.x.shape[1:]) for key in keys])
        return Task(task.support._replace(x=x[:, : task.support.x.shape[1]]), task.query._replace(x=x))


def test_constant_inputs_are_not_taken_for_repeated_examples() -> None:
    outcomes = checked(Bandit)
    assert failed(outcomes) == set()
    for name in ("apart", "splits"):
        assert outcomes[name].status == "skipped"
        assert "1 different examples, and each has 15" in outcomes[name].message
    assert failed(checked(Repeating)) == {"apart"}


class Stumbling(Orders):
    """Fails while it measures."""

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        raise LookupError("nothing to measure")


class Faltering(ToyClasses):
    """Samples inputs of another shape than it promised, from the second task on."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        task = super().sample(split, shape, first, count, seed=seed)
        return task if count == 1 else task._replace(query=task.query._replace(x=task.query.x[..., 1:]))


def test_errors_name_the_plugin_that_raised_them(tmp_path: Path) -> None:
    parts = {"backbone": "net", "adapters": ["descent"]}
    with pytest.raises(metaforge.errors.PluginError, match="The data set Faltering breaks its contract: the inputs"):
        trained(tmp_path / "one", Orders, Faltering, **parts)
    run = trained(tmp_path / "two", Stumbling, ToyClasses, **parts)
    with pytest.raises(metaforge.errors.PluginError, match="The learner 'mine' of python raised LookupError"):
        run.evaluate()


class Flat(ToyDescent):
    """Returns the sums of its updates, which would be broadcast."""

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: Any) -> tuple[Params, Params]:
        return {name: 0.1 * g.sum() for name, g in grads.items()}, state


class Many(Regularizer):
    """Returns one number for each task."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        return 2 * losses


class Scattered(ToyClasses):
    """Brings a kind of tasks whose score is one number for each query."""

    kind = replace(CLASSIFICATION, name="scattered", score=lambda p, y: (p.argmax(-1) == y).float())


def test_what_a_plugin_returned_wrongly_is_not_blamed_on_the_learner(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"backbone": "net", "adapters": {"descent": {}}, "steps": 1, "tasks": 2}
    registry = scan().with_plugin("backbone", "net", ToyNet).with_plugin("regularizer", "many", Many)
    for name, adapter in (("descent", ToyDescent), ("flat", Flat)):
        registry = registry.with_plugin("adapter", name, adapter)
    for name, data in (("toy", ToyClasses), ("scattered", Scattered)):
        registry = registry.with_plugin("dataset", name, data)
    for number, (data, changes, named) in enumerate(
        (
            ("toy", {"adapters": {"flat": {}}}, "adapter 'flat'"),
            ("toy", {"regularizers": ["many"]}, "regularizer 'many'"),
            ("scattered", {}, "dataset 'scattered'"),
        )
    ):
        options = {**parts, **changes, "settings": {"task": {"ways": 3, "shots": 2, "queries": 3}}}
        with pytest.raises(metaforge.errors.PluginError, match=f"The {named} of python breaks its contract in the"):
            metaforge.train("maml", data, out=tmp_path / str(number), registry=registry, **options)


def test_plans_of_a_learner_that_amplifies_rounding_are_compared_at_the_size_of_that() -> None:
    # At the toy rate of 0.1 this inner loop does not settle, and the linear system amplifies what rounding leaves.
    options = {"adjoint": "implicit", "proximal": 2.0, "steps": 60}
    subject = Subject.of("learner:maml", options=options)
    (vectorised,) = [check for check in checks_for(subject) if check.name == "vectorised"]
    vectorised(subject)
