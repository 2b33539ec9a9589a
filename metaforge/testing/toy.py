"""Toy plugins: small random tasks, a small network, and a second-order learner into which other plugins are built.

As in any data set, an episode depends on seed, split and number only.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring.functional import sum_of
from metaforge.authoring.inner_loop import InnerLoopLearner, InnerLoopOptions
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.protocols import (
    Adapter,
    Aux,
    Backbone,
    Dataset,
    Examples,
    InnerStep,
    Key,
    Kind,
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

OUTPUTS = 2
UNITS = 8
SPLITS = ("train", "val", "test")


class ToyTasksOptions(Options):
    """Options of the toy tasks."""

    x_shape: tuple[Annotated[int, Field(ge=1)], ...] = Field((6,), description="shape of one input")


class ToyClasses(Dataset):
    """Classification of random vectors: half of an input is a class centre plus noise, the other half stronger noise.

    Class k of one task resembles class k of another task, so that even a learner with a small learning rate improves.
    """

    Config = ToyTasksOptions
    kind: ClassVar[Kind] = "classification"

    def __init__(self, config: ToyTasksOptions, *, root: Path) -> None:
        self.x_shape = config.x_shape

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks; raise `DataError` for more than 1000 ways, shots or queries."""
        if split not in SPLITS or max(shape) > 1000:
            raise DataError(
                f"There are no toy tasks of split {split!r} and shape {tuple(shape)}.",
                remedy=f"use one of the splits {', '.join(SPLITS)}, and at most 1000 ways, shots and queries",
            )
        return TaskSpec(self.kind, self.x_shape, shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task with float32 inputs `[count, n, *x_shape]`."""
        spec = self.spec(split, shape)
        return stack_tasks([self.episode(spec, make_key(seed, split, first + i)) for i in range(count)])

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the number of values in an input."""
        return {"inputs": prod(self.x_shape)}

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key: a centre per class, and examples around it."""
        size = prod(spec.x_shape)
        informative = (torch.arange(size) < (size + 1) // 2).float()
        common = normal(make_key(0, "centres"), (spec.outputs, size))
        centres = 1.4 * (common + normal(fold_in(key, "centres"), (spec.outputs, size))) * informative

        def examples(part: str, per_class: int) -> Examples:
            y = torch.arange(spec.outputs).repeat(per_class)
            noise = normal(fold_in(key, part), (len(y), size)) * (0.5 + 1.5 * (1 - informative))
            return Examples((centres[y] + noise).reshape(len(y), *spec.x_shape), y)

        return Task(examples("support", spec.shape.shots), examples("query", spec.shape.queries))


class ToyCurves(ToyClasses):
    """Regression of one family of curves: `amplitude * tanh(2 x @ directions) + shift`, with common directions."""

    kind: ClassVar[Kind] = "regression"

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks with one way and `OUTPUTS` targets; raise `DataError` for other ways."""
        spec = super().spec(split, shape)
        if shape.ways != 1:
            raise DataError(f"A regression task cannot have {shape.ways} ways.", remedy="use 1 way")
        return TaskSpec(self.kind, spec.x_shape, OUTPUTS, shape)

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key, which decides amplitude and shift."""
        size = prod(spec.x_shape)
        directions = normal(make_key(0, "directions"), (size, OUTPUTS)) / size**0.5
        amplitude, shift = 1 + normal(fold_in(key, "curve"), (2, OUTPUTS))

        def examples(part: str, count: int) -> Examples:
            x = normal(fold_in(key, part), (count, size))
            return Examples(x.reshape(count, *spec.x_shape), amplitude * (2 * x @ directions).tanh() + shift)

        return Task(examples("support", spec.shape.shots), examples("query", spec.shape.queries))


def stack_tasks(tasks: list[Task]) -> Task:
    """Return tasks as one batched task with a leading task dimension."""
    pairs = [[torch.stack(leaves) for leaves in zip(*part, strict=True)] for part in zip(*tasks, strict=True)]
    return Task(*(Examples(*pair) for pair in pairs))


class ToyNet(Backbone):
    """A linear layer, batch norm and tanh: the smallest network whose output depends on the norm policy."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        """Return a module from `[n, *x_shape]`, and a context `[context]` if there is one, to `[n, UNITS]`."""
        linear = nn.Linear(prod(spec.x_shape) + context, UNITS)
        return ToyModule(nn.Flatten(), linear, nn.BatchNorm1d(UNITS), nn.Tanh())


class ToyModule(nn.Sequential):
    """Layers whose input is flattened and joined with the context, if there is one."""

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the output of the layers `[n, UNITS]`."""
        joined = torch.cat([x.flatten(1), *(vector.expand(len(x), -1) for vector in context)], 1)
        out: Tensor = super().forward(joined)  # type: ignore[no-untyped-call]
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
