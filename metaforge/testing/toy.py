"""Toy plugins: small random tasks, a small network, and a second-order learner into which other plugins are built.

As in any data set, an episode depends on seed, split and number only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import sum_of
from metaforge.authoring.inner_loop import InnerLoopLearner
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION, INTERACTION, MULTI_LABEL, REGRESSION, TaskKind
from metaforge.authoring.protocols import (
    Adapter,
    Aux,
    Backbone,
    Dataset,
    Examples,
    InnerStep,
    Key,
    Optimizer,
    Options,
    Params,
    Regularizer,
    Schedule,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.errors import DataError

OUTPUTS, UNITS, CLASSES = 2, 8, 100
SPLITS = ("train", "val", "test")


class ToyTasksOptions(Options):
    """Options of the toy tasks."""

    x_shape: tuple[Annotated[int, Field(ge=1)], ...] = Field((6,), description="shape of one input")


class ToyClasses(Dataset):
    """Classification of random vectors: half of an input is a class centre plus noise, the other half stronger noise.

    Examples of one label resemble each other in all tasks, so that even a learner with a small learning rate improves.
    The labels are numbered backwards, so that a learner that takes a label for the number of a class is found out.
    """

    Config = ToyTasksOptions
    kind: ClassVar[TaskKind] = CLASSIFICATION

    def __init__(self, config: ToyTasksOptions, *, root: Path) -> None:
        self.x_shape = config.x_shape

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks; raise `DataError` for more than 100 ways, or 1000 shots or queries."""
        if split not in SPLITS or shape.ways > CLASSES or max(shape) > 1000:
            raise DataError(
                f"There are no toy tasks of split {split!r} and shape {tuple(shape)}.",
                remedy=f"use one of the splits {', '.join(SPLITS)}, at most {CLASSES} ways, and 1000 shots and queries",
            )
        return TaskSpec(self.kind, self.x_shape, shape.ways, shape, CLASSES)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task with float32 inputs `[count, n, *x_shape]`."""
        spec = self.spec(split, shape)
        return stack_tasks([self.episode(spec, make_key(seed, split, first + i)) for i in range(count)])

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the number of classes and of values in an input."""
        return {"classes": CLASSES, "inputs": prod(self.x_shape)}

    def class_sizes(self, split: str) -> Sequence[int]:
        """Return 20 to 39 for the classes, in turn."""
        self.spec(split, TaskShape(1, 1, 1))
        return [20 + number % 20 for number in range(CLASSES)]

    def draw(
        self, split: str, classes: Sequence[int], shots: Sequence[int], queries: int, number: int, *, seed: int
    ) -> Task:
        """Return one task of given classes; raise `DataError` for a class that there is not, or for too many shots."""
        sizes = self.class_sizes(split)
        for index, count in zip(classes, shots, strict=True):
            if not 0 <= index < CLASSES or count + queries > sizes[index]:
                raise DataError(
                    f"There is no class {index} with {count} + {queries} examples.",
                    remedy=f"use the classes 0 to {CLASSES - 1}, which have 20 to 39 examples",
                )
        spec = self.spec(split, TaskShape(len(classes), 1, queries))
        labels = (torch.arange(len(classes)).repeat_interleave(torch.tensor(list(shots))), repeated(spec, queries))
        return self.task(spec, make_key(seed, f"{split}/drawn", number), torch.tensor(list(classes)), *labels)

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key: a centre per class, and examples around it."""
        labels = (repeated(spec, spec.shape.shots), repeated(spec, spec.shape.queries))
        return self.task(spec, key, spec.classes - 1 - torch.arange(spec.outputs), *labels)

    def task(self, spec: TaskSpec, key: Key, classes: Tensor, support: Tensor, query: Tensor) -> Task:
        """Return the task of a key with the labels `support` and `query` of `classes` `[ways]`."""
        size = prod(spec.x_shape)
        informative = (torch.arange(size) < (size + 1) // 2).float()
        rows = spec.classes - 1 - classes
        # The numbers of a row do not depend on how many rows there are.
        common = normal(make_key(0, "centres"), (int(rows.max()) + 1, size))[rows]
        centres = 1.4 * (common + normal(fold_in(key, "centres"), (spec.outputs, size))) * informative

        def examples(part: str, y: Tensor) -> Examples:
            noise = normal(fold_in(key, part), (len(y), size)) * (0.5 + 1.5 * (1 - informative))
            return Examples((centres[y] + noise).reshape(len(y), *spec.x_shape), y)

        return Task(examples("support", support), examples("query", query), classes)


def repeated(spec: TaskSpec, per_class: int) -> Tensor:
    """Return the labels of a toy task `[ways * per_class]`: all of them, again and again."""
    return torch.arange(spec.outputs).repeat(per_class)


class ToyCurves(ToyClasses):
    """Regression of one family of curves: `amplitude * tanh(2 x @ directions) + shift`, with common directions."""

    kind: ClassVar[TaskKind] = REGRESSION

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks with one way and `OUTPUTS` targets; raise `DataError` for other ways."""
        spec = super().spec(split, shape)
        if shape.ways != 1:
            raise DataError(f"A {self.kind.name} task cannot have {shape.ways} ways.", remedy="use 1 way")
        return TaskSpec(self.kind, spec.x_shape, OUTPUTS, shape)

    def class_sizes(self, split: str) -> Sequence[int]:
        """Return no sizes: a curve is no class."""
        return ()

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the number of values in an input."""
        return {"inputs": prod(self.x_shape)}

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key, which decides amplitude and shift."""
        size = prod(spec.x_shape)
        directions = normal(make_key(0, "directions"), (size, OUTPUTS)) / size**0.5
        amplitude, shift = 1 + normal(fold_in(key, "curve"), (2, OUTPUTS))

        def examples(part: str, count: int) -> Examples:
            x = normal(fold_in(key, part), (count, size))
            return Examples(x.reshape(count, *spec.x_shape), amplitude * (2 * x @ directions).tanh() + shift)

        return Task(examples("support", spec.shape.shots), examples("query", spec.shape.queries))


class ToyLabels(ToyCurves):
    """Labels of random vectors: a label is set where the curve of a task of `ToyCurves` is positive."""

    kind: ClassVar[TaskKind] = MULTI_LABEL

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key."""
        support, query, _ = super().episode(spec, key)
        return Task(Examples(support.x, (support.y > 0).float()), Examples(query.x, (query.y > 0).float()))


class ToyWorlds(ToyCurves):
    """Environments: their parameters are a random vector, almost the same for all rollouts of a task."""

    kind: ClassVar[TaskKind] = INTERACTION

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks with one way and one return per rollout; raise `DataError` for other ways."""
        return replace(super().spec(split, shape), outputs=1)

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key."""
        world = normal(fold_in(key, "world"), spec.x_shape)

        def rollouts(part: str, count: int) -> Examples:
            noise = normal(fold_in(key, part), (count, *spec.x_shape))
            return Examples(world + 0.01 * noise, torch.zeros(count, spec.outputs))

        return Task(rollouts("support", spec.shape.shots), rollouts("query", spec.shape.queries))


TOYS: Mapping[str, type[ToyClasses]] = MappingProxyType(
    {toy.kind.name: toy for toy in (ToyClasses, ToyCurves, ToyLabels, ToyWorlds)}
)
"""The toy tasks by the name of their kind."""


def stack_tasks(tasks: list[Task]) -> Task:
    """Return tasks as one batched task with a leading task dimension."""
    return Task(*tree_map(lambda *leaves: torch.stack(leaves), *tasks))


class ToyNet(Backbone):
    """A linear layer, batch norm and tanh: the smallest network whose output depends on the norm policy."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        """Return a module from `[n, *x_shape]`, and a context `[context]` if there is one, to `[n, UNITS]`."""
        layers = [nn.Flatten(), nn.Linear(prod(spec.x_shape), UNITS), nn.BatchNorm1d(UNITS)]
        return ToyContextNet(nn.Sequential(*layers), context) if context else nn.Sequential(*layers, nn.Tanh())


class ToyContextNet(nn.Module):
    """The toy network with a shift of its units before tanh, which is linear in a context."""

    def __init__(self, body: nn.Module, context: int) -> None:
        super().__init__()
        self.body, self.shift, self.act = body, nn.Linear(context, UNITS, bias=False), nn.Tanh()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return `[n, UNITS]` for `x` `[n, *x_shape]` and `context` `[context]`."""
        out: Tensor = self.act(self.body(x) + self.shift(context))
        return out


class ToyDescent(Adapter):
    """Gradient descent with a learning rate of 0.1."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the gradients times 0.1."""
        return {name: 0.1 * value for name, value in grads.items()}, state


class ToyReader(Regularizer):
    """Adds the mean squares of some terms, so that their gradients become part of the meta-gradient."""

    Config = Options

    def __init__(self, config: Options, terms: frozenset[str] = frozenset()) -> None:
        self.terms = terms

    def combine(self, losses: Tensor, terms: Params) -> Tensor | None:
        """Return the sum of the mean squares of all terms; None without terms."""
        return sum_of(term.square().mean() for term in terms.values()) if terms else None


class ToyOptimizer(Optimizer):
    """Gradient descent with momentum."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD with a momentum of 0.5."""
        return torch.optim.SGD(groups, momentum=0.5)


class ToySchedule(Schedule):
    """A rate that falls linearly to half of its first value."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def factor(self, step: int, share: float) -> float:
        """Return 1 - share / 2."""
        return 1 - share / 2


class ToyLearner(InnerLoopLearner):
    """Differentiates through its inner loop, so that plugins built into it are differentiated twice.

    A term that only other learners give is replaced by the query loss, so that any regularizer can be checked.
    """

    Config = InnerLoopOptions

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the inner steps."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        loss, aux = self.query_loss(values, fast, task, key, state)
        return loss, aux._replace(terms=dict.fromkeys(self.terms, loss) | aux.terms)
