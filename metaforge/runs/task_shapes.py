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
    """

    ways: tuple[int, ...]
    shots: tuple[int, ...]
    queries: tuple[int, ...]

    @property
    def number(self) -> int:
        """The number of shapes."""
        return math.prod(len({*sizes}) for sizes in self)

    @property
    def largest(self) -> TaskShape:
        """The shape with the most classes and examples."""
        return TaskShape(*map(max, self))

    @property
    def smallest(self) -> TaskShape:
        """The shape with the fewest classes and examples."""
        return TaskShape(*map(min, self))

    def at(self, step: int, *, seed: int) -> TaskShape:
        """Return the shape of the tasks of an outer step, which depends on the step and the seed of the run only."""
        if self.number == 1:
            return self.largest
        shares = uniforms(episode_keys(seed, "shapes of outer steps", step, 1)[0], len(self))
        return TaskShape(*(sizes[int(share * len(sizes))] for sizes, share in zip(self, shares, strict=True)))


def training_shapes(settings: RunConfig) -> TrainingShapes:
    """Return the shapes of training tasks: what `train` does not set is that of `task`."""
    task, train = settings.task, settings.train
    chosen = (train.ways or task.ways, train.shots or task.shots, train.queries or task.queries)
    return TrainingShapes(*(tuple(sizes) if isinstance(sizes, list) else (sizes,) for sizes in chosen))
