"""The shapes of a run's tasks, as the settings describe them, and which learners can take them."""

from __future__ import annotations

import math
from typing import NamedTuple

from metaforge.authoring.protocols import TaskShape
from metaforge.config.settings import RunConfig
from metaforge.data.random_numbers import episode_keys, uniforms


class TrainingShapes(NamedTuple):
    """The numbers of classes and examples that training tasks of a fixed shape can have.

    Each outer step draws one of each, so that all tasks of a step have one shape.

    Attributes:
        ways: Numbers of classes.
        shots: Numbers of support examples per class.
        queries: Numbers of query examples per class.
        together: Whether a step draws one place, and takes the numbers at this place of all lists, which have equal
            lengths or a single number.
    """

    ways: tuple[int, ...]
    shots: tuple[int, ...]
    queries: tuple[int, ...]
    together: bool = False

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of ways, shots and queries."""
        return self.ways, self.shots, self.queries

    @property
    def number(self) -> int:
        """The number of shapes."""
        return len({*self.extremes}) if self.together else math.prod(len({*sizes}) for sizes in self.sizes)

    @property
    def largest(self) -> TaskShape:
        """The shape with the most classes and examples."""
        return self.extremes[-1]

    @property
    def extremes(self) -> tuple[TaskShape, ...]:
        """Shapes that a data set must have, the largest last; if it has them, it has all others too.

        If numbers are drawn together, these are all shapes. Otherwise they are the one with the fewest classes and
        examples and the one with the most, between which all others lie.
        """
        if not self.together:
            return TaskShape(*map(min, self.sizes)), TaskShape(*map(max, self.sizes))
        length = max(map(len, self.sizes))
        shapes = map(TaskShape, *(sizes * (length if len(sizes) == 1 else 1) for sizes in self.sizes))
        return tuple(sorted(shapes, key=lambda shape: (shape.ways * (shape.shots + shape.queries), shape)))

    def at(self, step: int, *, seed: int) -> TaskShape:
        """Return the shape of the tasks of an outer step, which depends on the step and the seed of the run only."""
        if self.number == 1:
            return self.largest
        shares = uniforms(episode_keys(seed, "shapes of outer steps", step, 1)[0], len(self.sizes))
        if self.together:
            shares[:] = shares[0]
        return TaskShape(*(sizes[int(share * len(sizes))] for sizes, share in zip(self.sizes, shares, strict=True)))


def training_shapes(settings: RunConfig) -> TrainingShapes:
    """Return the shapes of training tasks: what `train` does not set is that of `task`."""
    task, train = settings.task, settings.train
    chosen = (train.ways or task.ways, train.shots or task.shots, train.queries or task.queries)
    ways, shots, queries = (tuple(numbers) if isinstance(numbers, list) else (numbers,) for numbers in chosen)
    return TrainingShapes(ways, shots, queries, train.together)
