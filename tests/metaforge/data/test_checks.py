"""Tests of the check of a data set's first episode: a correct one passes, each violation is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaforge.authoring.kinds import REGRESSION
from metaforge.authoring.protocols import Dataset, Examples, Task, TaskShape, TaskSpec
from metaforge.data.checks import checked_spec, expected_tasks
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge_plugins.datasets.glyphs import Glyphs, GlyphsOptions
from metaforge_plugins.datasets.sinusoid import Sinusoid, SinusoidOptions

SHAPE = TaskShape(3, 1, 2)
GLYPHS = GlyphsOptions(size=8, train=5, val=2, test=4, writers=3)


class Changed(Glyphs):
    """Glyphs whose tasks are modified before they are returned."""

    change: Callable[[torch.Tensor, torch.Tensor], Any]

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        task = super().sample(split, shape, first, count, seed=seed)
        support, query = (Examples(*self.change(*part)) for part in (task.support, task.query))
        return task._replace(support=support, query=query)


def changed(change: Callable[[torch.Tensor, torch.Tensor], Any]) -> Dataset:
    dataset = Changed(GLYPHS, root=Path())
    dataset.change = change
    return dataset


def test_correct_data_sets_pass() -> None:
    assert checked_spec(changed(lambda x, y: (x, y)), "train", SHAPE, seed=0).outputs == 3
    assert checked_spec(changed(lambda x, y: (x.double(), y)), "test", SHAPE, seed=0).x_shape == (1, 8, 8)
    unnumbered = changed(lambda x, y: (x, y))
    unnumbered.training_classes = lambda: 0  # type: ignore[attr-defined]
    assert checked_spec(unnumbered, "train", SHAPE, seed=0).classes == 0
    sinusoid = Sinusoid(SinusoidOptions(), root=Path())
    assert checked_spec(sinusoid, "train", TaskShape(1, 2, 3), seed=0).kind == REGRESSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x.flatten(2), y),
            r"the support set have the shape \[1, 3, 64\], not \[1, 3, 1, 8, 8\]",
        ),
        (lambda x, y: (x.long(), y), "are torch.int64, not torch.uint8 or a floating dtype"),
        (lambda x, y: (x, y.float()), "labels of the support set are torch.float32, not torch.int64"),
        (lambda x, y: (x, y + 1), "are 1 to 3, not 0 to 2"),
        (lambda x, y: (x, y * 0), "class 0: found 3, needed 1; class 1: found 0, needed 1"),
        (lambda x, y: (x.numpy(), y), "Task with ndarray"),
        (lambda x, y: 1 / 0, "sample raises ZeroDivisionError"),
    ],
    ids=range(7),
)
def test_a_broken_contract_names_the_class(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        checked_spec(changed(change), "train", SHAPE, seed=0)
    assert "Changed" in caught.value.where


def test_a_batch_of_tasks_is_compared_with_the_spec_without_reading_its_values() -> None:
    dataset = changed(lambda x, y: (x.float() * torch.nan, y + 5))
    spec = dataset.spec("train", SHAPE)
    batch = dataset.sample("train", SHAPE, 3, 4, seed=0)
    assert expected_tasks(dataset, batch, spec, 4) is batch
    for wrong, count, message in (
        (None, 4, "sample returns NoneType with NoneType, not a Task"),
        (batch, 3, r"support set have the shape \[4, 3, 1, 8, 8\], not \[3, 3, 1, 8, 8\]"),
        (Task(batch.support, batch.support), 4, r"query set have the shape \[4, 3, .* not \[4, 6, "),
        (batch._replace(query=batch.query._replace(y=batch.query.y.float())), 4, "query set are torch.float32"),
    ):
        with pytest.raises(PluginError, match=message):
            expected_tasks(dataset, wrong, spec, count)


def test_non_finite_values_are_a_data_error() -> None:
    with pytest.raises(DataError, match="192 of 192 values in the inputs of the support set are not finite"):
        checked_spec(changed(lambda x, y: (x.float() * torch.nan, y)), "train", SHAPE, seed=0)


def test_a_spec_of_another_kind_or_shape_is_refused() -> None:
    class Untrue(Glyphs):
        def spec(self, split: str, shape: TaskShape) -> TaskSpec:
            return TaskSpec("regression", (1,), 1, shape)

    with pytest.raises(PluginError, match="spec returns TaskSpec"):
        checked_spec(Untrue(GLYPHS, root=Path()), "train", SHAPE, seed=0)


def test_errors_of_the_data_set_itself_are_passed_on() -> None:
    with pytest.raises(DataError, match="5 classes of 3 images"):
        checked_spec(Glyphs(GLYPHS, root=Path()), "train", TaskShape(6, 1, 2), seed=0)
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        checked_spec(Glyphs(GLYPHS, root=Path()), "trian", SHAPE, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda classes: (), r"the classes of tasks are \(\), not torch.int64 \[1, 3\]"),
        (lambda classes: classes.int(), r"are torch.int32 \[1, 3\]"),
        (lambda classes: classes[:, 1:], r"are torch.int64 \[1, 2\]"),
        (lambda classes: classes - classes.max() - 1, "0 to the number of classes minus 1"),
        (lambda classes: classes * 0 + 8, "8 to 8, not 0 to the number of classes minus 1"),
        (lambda classes: classes * 0, "not distinct"),
    ],
)
def test_class_numbers_are_distinct_and_in_range(change: Callable[[Any], Any], message: str) -> None:
    dataset = changed(lambda x, y: (x, y))
    sample = dataset.sample
    dataset.sample = lambda *a, **k: sample(*a, **k)._replace(classes=change(sample(*a, **k).classes))  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=message):
        checked_spec(dataset, "train", SHAPE, seed=0)
