"""Tests of batches of episodes: tasks of one shape together, each as if it were alone, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import TaskShape
from metaforge.data.batches import episode_batches, examples_of
from metaforge.data.checks import checked_varied_spec
from metaforge.data.varied import EpisodeBounds, compose, varied_spec
from metaforge.errors import DataError, PluginError
from metaforge.testing.bench import difference
from metaforge.testing.toy import ToyClasses, ToyTasksOptions


def toys() -> ToyClasses:
    return ToyClasses(ToyTasksOptions(), root=Path())


def test_batches_have_the_episodes_of_each_shape() -> None:
    bounds = EpisodeBounds(min_ways=3, max_ways=4, queries=2, support=8)
    spec = varied_spec(toys(), "train", bounds)
    assert (spec.outputs, spec.shape, spec.classes) == (4, (4, 0, 0), 100)
    batches = episode_batches(toys(), "train", spec, bounds, range(10, 60), seed=1)
    assert 2 < len(batches) < 50
    numbers = [number for batch in batches for number in batch.episodes]
    assert sorted(numbers) == [*range(10, 60)]
    assert [batch.episodes[0] for batch in batches] == sorted(batch.episodes[0] for batch in batches)
    for batch in batches:
        assert list(batch.episodes) == sorted(batch.episodes)
        assert batch.spec.outputs == batch.spec.shape.ways == batch.tasks.classes.shape[1]  # type: ignore[union-attr]
        assert examples_of(batch) == batch.tasks.support.y[0].numel() + batch.tasks.query.y[0].numel()
        for index, number in enumerate(batch.episodes):
            parts = compose(toys().class_sizes("train"), bounds, number, seed=1, split="train")
            assert not difference(one_task(batch.tasks, index), toys().draw("train", *parts, number, seed=1))


def test_an_episode_is_the_same_in_any_batch() -> None:
    bounds = EpisodeBounds(min_ways=2, max_ways=6)
    spec = varied_spec(toys(), "test", bounds)

    def by_number(*ranges: range) -> dict[int, torch.Tensor]:
        batches = [b for part in ranges for b in episode_batches(toys(), "test", spec, bounds, part, seed=0)]
        return {n: b.tasks.support.x[i] for b in batches for i, n in enumerate(b.episodes)}

    whole, parts = by_number(range(20)), by_number(range(3), range(3, 4), range(4, 20))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[number], parts[number]) for number in whole)


def test_tasks_of_a_fixed_shape_are_one_batch() -> None:
    spec = toys().spec("train", TaskShape(3, 2, 4))
    (batch,) = episode_batches(toys(), "train", spec, None, range(3, 7), seed=2)
    assert (batch.episodes, batch.spec, examples_of(batch)) == (range(3, 7), spec, 18)
    assert not difference(batch.tasks, toys().sample("train", spec.shape, 3, 4, seed=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task._replace(support=task.query), "the inputs of the support set have the shape"),
        (
            lambda task: task._replace(query=task.query._replace(y=task.query.y.int())),
            "torch.int32, not torch.int64",
        ),
        (lambda task: task._replace(classes=()), r"the classes of tasks are \(\), not torch.int64"),
        (lambda task: tuple(task), "sample returns tuple"),
    ],
)
def test_a_drawn_task_that_is_not_as_promised_is_refused(
    change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds, draw = EpisodeBounds(min_ways=3, max_ways=4, queries=1), ToyClasses.draw
    spec = varied_spec(toys(), "train", bounds)
    monkeypatch.setattr(ToyClasses, "draw", lambda *a, **k: change(draw(*a, **k)))
    for call in (
        lambda: episode_batches(toys(), "train", spec, bounds, range(1), seed=1),
        lambda: checked_varied_spec(toys(), "train", bounds, seed=1),
    ):
        with pytest.raises(PluginError, match=message):
            call()


def test_the_first_drawn_task_is_checked_fully(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds, draw = EpisodeBounds(min_ways=3, max_ways=4), ToyClasses.draw
    assert checked_varied_spec(toys(), "train", bounds, seed=0) == varied_spec(toys(), "train", bounds)
    for change, error, message in (
        (
            lambda task: task.support._replace(y=task.support.y * 0),
            PluginError,
            "numbers of examples",
        ),
        (lambda task: task.support._replace(x=task.support.x / 0), DataError, "not finite"),
    ):
        monkeypatch.setattr(ToyClasses, "draw", lambda *a, c=change, **k: (t := draw(*a, **k))._replace(support=c(t)))
        with pytest.raises(error, match=message):
            checked_varied_spec(toys(), "train", bounds, seed=0)
    monkeypatch.setattr(ToyClasses, "draw", lambda *a, **k: (t := draw(*a, **k))._replace(classes=t.classes * 0))
    with pytest.raises(PluginError, match="not distinct"):
        checked_varied_spec(toys(), "train", bounds, seed=0)


def test_the_tasks_of_a_batch_can_have_other_numbers_than_its_episodes() -> None:
    spec = toys().spec("train", TaskShape(3, 2, 4))
    numbers = [5, 0, 5]
    (batch,) = episode_batches(toys(), "train", spec, None, range(3, 6), seed=2, numbers=numbers)
    assert (batch.episodes, batch.spec) == (range(3, 6), spec)
    for index, number in enumerate(numbers):
        alone = one_task(toys().sample("train", spec.shape, number, 1, seed=2))
        assert not difference(one_task(batch.tasks, index), alone)
