"""The base class of regression data sets whose tasks are curves: functions of one number."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from metaforge.authoring.kinds import REGRESSION, TaskKind
from metaforge.authoring.protocols import Dataset, Examples, Options, Task, TaskShape, TaskSpec
from metaforge.data.class_pool import check_split
from metaforge.data.random_numbers import Bits, bits, episode_keys, uniforms
from metaforge.errors import DataError

Floats = NDArray[np.float64]
SPLITS = ("train", "val", "test")


def _ordered(limits: tuple[float, ...]) -> tuple[float, ...]:
    """Return a lower and an upper limit; raise `ValueError` if the lower one is larger."""
    low, high = limits
    if low > high:
        raise ValueError(f"the lower limit {low} is above the upper limit {high}")
    return limits


Range = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...],
    Field(min_length=2, max_length=2),
    AfterValidator(_ordered),
]
"""An option that is drawn for each task between two limits. It is fixed if they are equal."""


def between(limits: tuple[float, ...], uniform: Floats) -> Floats:
    """Return uniform numbers in [0, 1) scaled to the interval between two limits.

    Args:
        limits: The lower and the upper limit.
        uniform: Numbers `[...]` in [0, 1).

    Returns:
        Numbers `[...]`.

    Example:
        >>> import numpy as np
        >>> from metaforge.data import between
        >>> between((-2.0, 2.0), np.array([0.0, 0.25]))
        array([-2., -1.])
    """
    low, high = limits
    return low + (high - low) * uniform


class CurveOptions(Options):
    """Options of every data set of curves."""

    query_grid: bool = Field(
        default=False, description="place the query points of val and test tasks on an even grid over the range of x"
    )


class CurveDataset(Dataset):
    """Base class of data sets of curves: a subclass defines `curves` and `facts`.

    The inputs of a task are uniform in `x_range`. The splits are independent samples of the same distribution.

    Attributes:
        name: Name of the data set, for messages.
        x_range: The smallest and the largest input.

    Example:
        >>> from pathlib import Path
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge.data import CurveDataset, CurveOptions, uniforms
        >>> class Lines(CurveDataset):
        ...     "Lines through the origin with slopes in [0, 1)."
        ...     Config, name, x_range = CurveOptions, "lines", (-1.0, 1.0)
        ...     def curves(self, keys, x):
        ...         return uniforms(keys, 1) * x
        ...     def facts(self, split):
        ...         return {"slopes": "0 to 1"}
        >>> task = Lines(CurveOptions(), root=Path()).sample("train", TaskShape(1, 5, 10), 0, 4, seed=0)
        >>> task.support.x.shape, task.query.y.shape
        (torch.Size([4, 5, 1]), torch.Size([4, 10, 1]))
    """

    kind: ClassVar[TaskKind] = REGRESSION
    name: ClassVar[str]
    x_range: ClassVar[tuple[float, float]]

    def __init__(self, config: Any, *, root: Path) -> None:
        self.config = config

    @abstractmethod
    def curves(self, keys: Bits, x: Floats) -> Floats:
        """Return the targets of the curves of some episodes.

        Args:
            keys: One key for each curve `[count]`, from which its random numbers are derived.
            x: Inputs `[count, n]`. The target of a point must not depend on the points after it.

        Returns:
            Targets `[count, n]`.
        """

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks from x `[n, 1]` to y `[n, 1]`; raise `DataError` unless the shape has one way."""
        self.check(split, shape)
        return TaskSpec(REGRESSION, (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task of float32: support `[count, shots, 1]`, query `[count, queries, 1]`."""
        keys, x = self.points(split, shape, first, count, seed=seed)
        y = self.curves(keys, x)
        support, query = (
            Examples(*(torch.from_numpy(values[:, part, None].astype(np.float32)) for values in (x, y)))
            for part in (slice(shape.shots), slice(shape.shots, None))
        )
        return Task(support, query)

    def points(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> tuple[Bits, Floats]:
        """Return the keys `[count]` of the curves of some episodes, and their inputs `[count, shots + queries]`.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            shape: Numbers of support and query points.
            first: Number of the first episode, from 0.
            count: Number of episodes.
            seed: Seed of the episodes.

        Returns:
            The arguments of `curves`; the inputs of the support set come first.

        Raises:
            ConfigError: There is no such split.
            DataError: The shape has more than one way, or no points.
        """
        self.check(split, shape)
        keys = bits(episode_keys(seed, split, first, count), 3)
        support = between(self.x_range, uniforms(keys[:, 1], shape.shots))
        query = between(self.x_range, uniforms(keys[:, 2], shape.queries))
        if self.config.query_grid and split != "train":
            query = np.broadcast_to(np.linspace(*self.x_range, shape.queries), query.shape)
        return keys[:, 0], np.concatenate([support, query], axis=1)

    def check(self, split: str, shape: TaskShape | None = None) -> None:
        """Raise `ConfigError` for an unknown split, and `DataError` for a shape that no curve has."""
        check_split(split, SPLITS, self.name)
        if shape is not None and (shape.ways != 1 or shape.shots < 1 or shape.queries < 1):
            raise DataError(
                f"a regression task cannot have {shape.ways} ways, {shape.shots} shots and {shape.queries} queries",
                where=f"{self.name}, task shape",
                remedy="set ways = 1, and shots and queries (numbers of points, without an upper limit) to 1 or more",
            )
