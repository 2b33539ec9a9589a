"""Tests of the shapes of training tasks: one per outer step, from the settings, the seed and the step alone."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from metaforge.authoring.protocols import TaskShape
from metaforge.config.settings import RunConfig
from metaforge.runs.task_shapes import TrainingShapes, training_shapes


def shapes(**train: object) -> TrainingShapes:
    return training_shapes(RunConfig.model_validate({"task": {"ways": 5, "shots": 1, "queries": 15}, "train": train}))


def test_what_training_does_not_set_is_that_of_the_task() -> None:
    assert shapes().sizes == ((5,), (1,), (15,))
    assert shapes(ways=20, queries=[2, 3]).sizes == ((20,), (1,), (2, 3))
    assert shapes().at(7, seed=3) == shapes().largest == TaskShape(5, 1, 15)
    assert {*shapes().extremes} == {TaskShape(5, 1, 15)}
    assert (shapes().number, shapes(ways=[5, 5, 20], shots=[1, 2, 3]).number) == (1, 6)


def test_each_step_draws_one_of_each_list() -> None:
    several = shapes(ways=[5, 20], shots=[1, 5, 2])
    assert several.extremes == (TaskShape(5, 1, 15), TaskShape(20, 5, 15))
    assert several.largest == TaskShape(20, 5, 15)
    drawn = [several.at(step, seed=0) for step in range(1, 1201)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())
    assert drawn == [several.at(step, seed=0) for step in range(1, 1201)]
    assert drawn != [several.at(step, seed=1) for step in range(1, 1201)]


def test_lists_can_be_drawn_from_together() -> None:
    pairs = shapes(shots=[5, 1, 3], queries=[2, 9, 4], together=True)
    expected = (TaskShape(5, 3, 4), TaskShape(5, 5, 2), TaskShape(5, 1, 9))
    assert pairs.extremes == expected
    assert (pairs.number, pairs.largest) == (3, TaskShape(5, 1, 9))
    counts = Counter(pairs.at(step, seed=0) for step in range(1, 601))
    assert counts.keys() == {*expected}
    assert all(150 < count < 250 for count in counts.values())
    assert shapes(shots=[5, 1, 5], queries=[2, 9, 2], together=True).number == 2
    # A single number has every place.
    assert shapes(ways=[5, 9], shots=[2], together=True).extremes == (TaskShape(5, 2, 15), TaskShape(9, 2, 15))


def test_lists_of_other_lengths_cannot_be_drawn_from_together() -> None:
    with pytest.raises(ValidationError, match="equal lengths, but of their numbers ways has 2, shots has 3"):
        shapes(ways=[5, 20], shots=[1, 2, 3], queries=4, together=True)
    assert shapes(ways=[5, 20], shots=[1, 2, 3]).number == 6
