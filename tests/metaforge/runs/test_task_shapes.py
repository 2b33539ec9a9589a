"""Tests of the shapes of training tasks: one per outer step, from the settings, the seed and the step alone."""

from __future__ import annotations

from collections import Counter

from metaforge.authoring.protocols import TaskShape
from metaforge.config.settings import RunConfig
from metaforge.runs.task_shapes import TrainingShapes, training_shapes


def shapes(**train: object) -> TrainingShapes:
    return training_shapes(RunConfig.model_validate({"task": {"ways": 5, "shots": 1, "queries": 15}, "train": train}))


def test_what_training_does_not_set_is_that_of_the_task() -> None:
    assert shapes() == ((5,), (1,), (15,))
    assert shapes(ways=20, queries=[2, 3]) == ((20,), (1,), (2, 3))
    assert shapes().at(7, seed=3) == shapes().largest == shapes().smallest == TaskShape(5, 1, 15)
    assert (shapes().number, shapes(ways=[5, 5, 20], shots=[1, 2, 3]).number) == (1, 6)


def test_each_step_draws_one_of_each_list() -> None:
    several = shapes(ways=[5, 20], shots=[1, 5, 2])
    assert (several.smallest, several.largest) == (TaskShape(5, 1, 15), TaskShape(20, 5, 15))
    drawn = [several.at(step, seed=0) for step in range(1, 1201)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())
    assert drawn == [several.at(step, seed=0) for step in range(1, 1201)]
    assert drawn != [several.at(step, seed=1) for step in range(1, 1201)]
