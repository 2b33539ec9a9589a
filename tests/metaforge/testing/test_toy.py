"""Tests of the toy plugins: tasks that depend on seed, split and number only, and that can be learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import KINDS, REGRESSION
from metaforge.authoring.protocols import Options, TaskShape
from metaforge.errors import DataError
from metaforge.testing.bench import difference
from metaforge.testing.toy import (
    CLASSES,
    OUTPUTS,
    TOYS,
    UNITS,
    ToyClasses,
    ToyCurves,
    ToyDescent,
    ToyLabels,
    ToyNet,
    ToyTasksOptions,
    ToyWorlds,
    stack_tasks,
)

SHAPE = TaskShape(3, 2, 4)


def classes() -> ToyClasses:
    return ToyClasses(ToyTasksOptions(x_shape=(2, 5)), root=Path())


def test_classification_tasks_have_their_shapes_and_labels() -> None:
    task = classes().sample("train", SHAPE, 0, 7, seed=0)
    assert task.support.x.shape == (7, 6, 2, 5)
    assert task.query.x.shape == (7, 12, 2, 5)
    assert torch.equal(task.query.y[0].bincount(), torch.tensor([4, 4, 4]))
    assert classes().facts("train") == {"classes": CLASSES, "inputs": 10}
    assert torch.equal(task.classes, torch.tensor([99, 98, 97]).expand(7, -1))


def test_a_class_resembles_itself_in_other_tasks() -> None:
    x, y = classes().sample("train", TaskShape(2, 5, 1), 0, 400, seed=0).support
    means = [[x[tasks][y[tasks] == k].mean(0) for k in range(2)] for tasks in (slice(200), slice(200, 400))]
    assert (means[0][0] - means[1][0]).norm() < 0.5 * (means[0][0] - means[1][1]).norm()


def test_regression_tasks_have_their_shapes() -> None:
    curves = ToyCurves(ToyTasksOptions(), root=Path())
    task = curves.sample("val", TaskShape(1, 5, 8), 0, 3, seed=1)
    assert (task.support.x.shape, task.query.y.shape) == ((3, 5, 6), (3, 8, OUTPUTS))
    assert curves.spec("val", TaskShape(1, 5, 8)).kind == REGRESSION


def test_labels_are_zeros_and_ones_and_both_occur() -> None:
    y = ToyLabels(ToyTasksOptions(), root=Path()).sample("val", TaskShape(1, 5, 8), 0, 9, seed=1).query.y
    assert (y.shape, y.dtype) == ((9, 8, OUTPUTS), torch.float32)
    assert y.unique().tolist() == [0, 1]


def test_the_rollouts_of_a_task_have_almost_the_same_world_and_no_targets() -> None:
    batch = ToyWorlds(ToyTasksOptions(x_shape=(2,)), root=Path()).sample("val", TaskShape(1, 5, 8), 0, 9, seed=1)
    assert not batch.query.y.any()
    within, between = batch.query.x.std(1).mean(), batch.query.x.mean(1).std(0).mean()
    assert 0 < 10 * within < between


def test_there_is_a_toy_of_every_built_in_kind() -> None:
    assert TOYS.keys() == KINDS.keys()


def test_episodes_depend_on_seed_split_and_number_only() -> None:
    batch = classes().sample("train", SHAPE, 0, 4, seed=0)
    assert not difference(stack_tasks([classes().episode(classes().spec("train", SHAPE), make_key(0, "train", 0))]),
                          classes().sample("train", SHAPE, 0, 1, seed=0))  # fmt: skip
    for split, first, seed in (("test", 0, 0), ("train", 1, 0), ("train", 0, 1)):
        assert difference(batch, classes().sample(split, SHAPE, first, 4, seed=seed))


def test_unknown_splits_large_tasks_and_ways_in_regression_are_refused() -> None:
    with pytest.raises(DataError, match="no toy tasks of split 'other'"):
        classes().spec("other", SHAPE)
    with pytest.raises(DataError, match="no toy tasks"):
        classes().spec("train", TaskShape(101, 1, 1))
    with pytest.raises(DataError, match="cannot have 2 ways"):
        ToyCurves(ToyTasksOptions(), root=Path()).spec("train", TaskShape(2, 1, 1))


def test_network_and_adapter() -> None:
    net = ToyNet(Options()).build(classes().spec("train", SHAPE))
    assert net(torch.zeros(4, 2, 5)).shape == (4, UNITS)
    updates, state = ToyDescent(Options()).update({}, {"w": torch.full((2,), 3.0)}, {}, {"w": torch.zeros(2)}, 0)
    torch.testing.assert_close(updates["w"], torch.full((2,), 0.3))
    assert state == {}
