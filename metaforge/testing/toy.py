"""The toy problem: small random tasks, a small network, and a second-order learner to build other plugins into.

Tasks are values: which example a task has is drawn from the seed, the split, its number and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring.inner_loop import InnerLoopLearner, InnerLoopOptions
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.protocols import (
    Adapter,
    Aux,
    Backbone,
    Dataset,
    Examples,
    Key,
    Kind,
    Options,
    Params,
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
    """Classes of random vectors: the first half of the inputs tells them apart, the second half is louder noise.

    Class k of one task is somewhat like class k of another, so that even a slow learner has something to find.
    """

    Config = ToyTasksOptions
    kind: ClassVar[Kind] = "classification"

    def __init__(self, config: ToyTasksOptions, *, root: Path) -> None:
        self.x_shape = config.x_shape

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks of this shape; `DataError` for more than 1000 classes or examples of each."""
        if split not in SPLITS or max(shape) > 1000:
            raise DataError(
                f"There are no toy tasks of split {split!r} and shape {tuple(shape)}.",
                remedy=f"use one of {', '.join(SPLITS)}, and at most 1000 classes and examples of each",
            )
        return TaskSpec(self.kind, self.x_shape, shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes as one batched task of float32."""
        spec = self.spec(split, shape)
        return stacked([self.episode(spec, make_key(seed, split, first + i)) for i in range(count)])

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return how large an input is."""
        return {"inputs": prod(self.x_shape)}

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key: class centres, and examples around them."""
        size = prod(spec.x_shape)
        telling = (torch.arange(size) < (size + 1) // 2).float()
        common = normal(make_key(0, "centres"), (spec.outputs, size))
        centres = 1.4 * (common + normal(fold_in(key, "centres"), (spec.outputs, size))) * telling

        def examples(part: str, each: int) -> Examples:
            y = torch.arange(spec.outputs).repeat(each)
            noise = normal(fold_in(key, part), (len(y), size)) * (0.5 + 1.5 * (1 - telling))
            return Examples((centres[y] + noise).reshape(len(y), *spec.x_shape), y)

        return Task(examples("support", spec.shape.shots), examples("query", spec.shape.queries))


class ToyCurves(ToyClasses):
    """Curves of one family: each task bends and shifts the same few directions of the inputs."""

    kind: ClassVar[Kind] = "regression"

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks with one class and `OUTPUTS` targets."""
        checked = super().spec(split, shape)
        if shape.ways != 1:
            raise DataError(f"{shape.ways} ways are no regression task.", remedy="use 1 way")
        return TaskSpec(self.kind, checked.x_shape, OUTPUTS, shape)

    def episode(self, spec: TaskSpec, key: Key) -> Task:
        """Return the task of a key: an amplitude and a shift of the family's own directions."""
        size = prod(spec.x_shape)
        directions = normal(make_key(0, "directions"), (size, OUTPUTS)) / size**0.5
        amplitude, shift = 1 + normal(fold_in(key, "curve"), (2, OUTPUTS))

        def examples(part: str, each: int) -> Examples:
            x = normal(fold_in(key, part), (each, size))
            return Examples(x.reshape(each, *spec.x_shape), amplitude * (2 * x @ directions).tanh() + shift)

        return Task(examples("support", spec.shape.shots), examples("query", spec.shape.queries))


def stacked(tasks: list[Task]) -> Task:
    """Return tasks as one batch `[count, ...]`."""
    pairs = [[torch.stack(leaves) for leaves in zip(*part, strict=True)] for part in zip(*tasks, strict=True)]
    return Task(*(Examples(*pair) for pair in pairs))


class ToyNet(Backbone):
    """A linear layer, batch norm and tanh: enough for every norm policy to matter."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, *x_shape]` to `[n, UNITS]`."""
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(spec.x_shape), UNITS), nn.BatchNorm1d(UNITS), nn.Tanh())


class ToyDescent(Adapter):
    """Gradient descent with the rate 0.1."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return a tenth of the gradients."""
        return {name: 0.1 * value for name, value in grads.items()}, state


class ToyLearner(InnerLoopLearner):
    """Learns by differentiating through its inner loop: what is built into it is differentiated twice."""

    Config = InnerLoopOptions

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the inner steps."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
