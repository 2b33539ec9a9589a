"""Data sets, learners and runs for tests of evaluation and reports: the score of every task is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from metaforge.authoring.keys import normal
from metaforge.authoring.protocols import (
    Dataset,
    Examples,
    Fast,
    Key,
    Learner,
    Options,
    Params,
    Tags,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.config.resolved import Resolved
from metaforge.config.settings import RunConfig
from metaforge.testing.toy import stack_tasks


class Pixels(Dataset):
    """Images with one bright pixel, whose position is the class; see `sample` for the expected scores."""

    Config = Options
    kind = "classification"
    note = "The data are synthetic."

    def __init__(self) -> None:
        self.sampled: list[tuple[str, TaskShape, int, int, int]] = []

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec("classification", (1, 4, 4), shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes whose pixel `label` is bright; in odd episodes, that of queries shows the next class.

        The last pixel of the queries is bright if the number of the episode is a multiple of 4.
        """
        self.sampled.append((split, shape, first, count, seed))
        support, query = (torch.arange(shape.ways).repeat_interleave(n) for n in shape[1:])
        pairs = []
        for index in range(first, first + count):
            shown = (query + index % 2) % shape.ways
            x = self.images(shown)
            x[:, 0, 3, 3] = 10 if index % 4 == 0 else 0
            pairs.append(Task(Examples(self.images(support), support), Examples(x, query)))
        return stack_tasks(pairs)

    @staticmethod
    def images(classes: Tensor) -> Tensor:
        x = torch.zeros(len(classes), 16, dtype=torch.uint8)
        x[torch.arange(len(classes)), classes] = 255
        return x.reshape(-1, 1, 4, 4)

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {}


class Lines(Dataset):
    """Regression tasks y = (index + 1) x, with support points at 0 and 2 and queries between 0 and 2."""

    Config = Options
    kind = "regression"

    def __init__(self) -> None:
        pass

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec("regression", (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        slope = torch.arange(first + 1, first + count + 1).reshape(-1, 1, 1).float()
        support = torch.tensor([0.0, 2.0]).reshape(1, -1, 1).expand(count, -1, -1)
        query = torch.linspace(0.25, 1.75, shape.queries).reshape(1, -1, 1).expand(count, -1, -1)
        return Task(Examples(support, slope * support), Examples(query, slope * query))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {}


class Greys(Dataset):
    """Completion of images of 3 x 4 pixels: all pixels of task i have the value (i + 1) / 10."""

    Config = Options
    kind = "regression"

    def __init__(self) -> None:
        pass

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec("regression", (2,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 4), indexing="ij")
        x = torch.stack([rows, columns], -1).reshape(1, 12, 2).expand(count, -1, -1)
        y = torch.arange(first + 1, first + count + 1).reshape(-1, 1, 1).expand(-1, 12, -1) / 10
        first_query, end = shape.shots, shape.shots + shape.queries
        support, query = (Examples(x[:, i:j], y[:, i:j]) for i, j in ((0, first_query), (first_query, end)))
        return Task(support, query)

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {}

    def grid(self, split: str) -> tuple[int, ...]:
        return (3, 4)


class Reader(Learner):
    """Predicts the class of the bright pixel after a step, and class 0 before; wrong if the last pixel is bright."""

    Config = Options
    tags = Tags(adapts=True)
    norm, transductive, steps = "support", True, 2

    def __init__(self, ways: int = 5) -> None:
        self.ways = ways

    def init(self, key: Key) -> Params:
        return {"w": torch.ones(())}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Fast:
        return values["w"] * (self.steps if steps is None else steps)

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        pixels = x.flatten(1)
        wrong = pixels[:, 15:] > 0
        right = pixels[:, : self.ways]
        first = (torch.arange(self.ways) == 0).to(x.dtype).expand_as(right)
        read = torch.where(wrong, 1 - right, right)
        return torch.where(fast > 0, read, first)

    def loss(self, values: Params, task: Task, key: Key) -> Any:
        raise AssertionError("evaluation takes no loss")

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        return {"instance 1": values["w"] * 0.25, "key": (key % 1024).to(values["w"].dtype)}


class Proportional(Reader):
    """Predicts y = w x after at least one step, and 0 before."""

    tags = Tags(kinds=frozenset({"regression"}), adapts=True)

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        return values["w"] * x * (fast > 0)


class Halves(Proportional):
    """Predicts 0.5 everywhere, with a deviation of 0.25."""

    tags = Tags(kinds=frozenset({"regression"}))

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        return torch.full((len(x), 1), 0.5, dtype=x.dtype)

    def deviation(self, values: Params, fast: Fast, x: Tensor) -> Tensor:
        return torch.full((len(x), 1), 0.25, dtype=x.dtype)


class Certain(Halves):
    """Predicts 0.5 everywhere, and no deviation."""

    deviation = Learner.deviation


class Worlds(Lines):
    """Interaction: the parameter of a world is a number, and there is no target."""

    kind = "interaction"

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec("interaction", (1,), 1, shape)


class Player(Reader):
    """Returns minus the parameter of the world plus noise of its key, and after a step the noise alone."""

    tags = Tags(kinds=frozenset({"interaction"}), adapts=True)

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        assert key is not None
        return 0.01 * normal(key, x.shape) - x * (fast == 0)


class FakeRun:
    """A run with the attributes that evaluation uses."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: Path | None, dataset: Any = None, learner: Any = Reader, **settings: Any) -> None:
        self.folder, self.dataset, self.make = folder, dataset or Pixels(), learner
        named = (SimpleNamespace(name="reader"), SimpleNamespace(name="pixels"))
        self.resolved = Resolved(RunConfig.model_validate(settings), *named, backbone=None)  # type: ignore[arg-type]
        self.values = {"w": torch.ones(())}

    def learner(self, spec: TaskSpec) -> Learner:
        return self.make(spec.outputs)


def interaction_run(folder: Path | None) -> FakeRun:
    """Return a run of a learner that acts in environments."""
    return FakeRun(folder, Worlds(), Player, task={"ways": 1, "shots": 2, "queries": 4})


def regression_run(folder: Path | None) -> FakeRun:
    """Return a run on regression tasks with two support points and four queries."""
    return FakeRun(folder, Lines(), Proportional, task={"ways": 1, "shots": 2, "queries": 4})


def completion_run(folder: Path | None, learner: Any = Halves) -> FakeRun:
    """Return a run on image completion tasks with three support pixels and four queries."""
    return FakeRun(folder, Greys(), learner, task={"ways": 1, "shots": 3, "queries": 4})
