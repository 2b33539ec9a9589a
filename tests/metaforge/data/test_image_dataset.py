"""Tests of the base class of image data sets: what a subclass gets for its pools."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from metaforge.authoring import Options, TaskShape
from metaforge.authoring.kinds import CLASSIFICATION, REGRESSION, task_kind
from metaforge.data import ClassPool, ImageDataset, ImageOptions
from metaforge.errors import ConfigError, DataError
from metaforge.testing import Check, Subject, parametrize_with_checks

SIZES = {"train": [9, 4, 30, 6, 12], "val": [5, 5, 5], "test": [3, 7, 5, 9]}


class Uneven(ImageDataset):
    """Random images of classes of unequal sizes."""

    Config = Options

    def __init__(self, config: Options, *, root: Path) -> None:
        self.config = config

    def pool(self, split: str) -> ClassPool:
        if split not in SIZES:
            raise DataError("There is no such split.")
        sizes = np.array(SIZES[split])
        shape = (len(sizes), sizes.max(), 1, 4, 4)
        images = np.random.default_rng(len(split) + len(sizes)).integers(0, 256, shape).astype(np.uint8)
        return ClassPool(images, [str(number) for number in range(len(sizes))], sizes=sizes)

    def facts(self, split: str) -> dict[str, str | int | float]:
        return {"classes": len(SIZES[split])}


class Both(Uneven):
    """The same images, of which there are completion tasks too."""

    Config = ImageOptions
    defaults: ClassVar[Any] = {"classification": {"backbone": {"name": "conv4"}}, "regression": {"train": {"lr": 0.1}}}


COMPLETION = Subject("dataset", "both", Both, shape=TaskShape(1, 4, 5)).with_options({"task": "completion"})


@parametrize_with_checks([Subject("dataset", "uneven", Uneven, shape=TaskShape(3, 1, 2))])
def test_a_subclass_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


@parametrize_with_checks([COMPLETION])
def test_its_completion_tasks_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


def test_the_option_chooses_the_tasks() -> None:
    root = Path()
    images, pixels = (Both(ImageOptions(task=task), root=root) for task in ("classification", "completion"))
    assert (images.kind, pixels.kind) == (CLASSIFICATION, REGRESSION)
    assert type(images) is Both is Both.variant({"task": "classification"})
    assert type(pixels) is Both.variant({"task": "completion"})
    assert isinstance(pixels, Both)
    spec = pixels.spec("test", TaskShape(1, 3, 13))
    assert (spec.kind, spec.x_shape, spec.outputs, spec.classes) == (REGRESSION, (2,), 1, 0)
    assert (images.grid("test"), pixels.grid("test")) == ((), (4, 4))
    task = pixels.sample("test", spec.shape, 0, 2, seed=0)
    assert (task.support.x.shape, task.query.y.shape, task.classes) == ((2, 3, 2), (2, 13, 1), ())
    assert (list(pixels.class_names("test")), list(pixels.class_sizes("test"))) == ([], [])
    assert pixels.facts("test") == images.facts("test")
    with pytest.raises(DataError, match="4 x 4 has 16"):
        pixels.spec("test", TaskShape(1, 3, 14))
    with pytest.raises(DataError, match="cannot have 2 ways, 3 shots and 4 queries"):
        pixels.spec("test", TaskShape(2, 3, 4))


def test_the_class_of_completion_tasks_is_one_and_is_named_as_its_images_are() -> None:
    cls = Both.variant({"task": "completion"})
    assert cls is Both.variant({"task": "completion"})
    assert cls.variant({}) is cls.variant({"task": "completion"}) is cls
    assert (cls.__name__, cls.__qualname__, cls.__module__, cls.__doc__) == ("Both", "Both", __name__, Both.__doc__)
    assert task_kind(cls.kind) is REGRESSION
    assert cls.defaults == {"regression": {"task": {"ways": 1, "shots": 100, "queries": 100}, "train": {"lr": 0.1}}}
    # Options that are not valid are left to the validation.
    assert Both.variant({"task": ["completion"]}) is Both


def test_a_dataset_without_the_option_refuses_it() -> None:
    with pytest.raises(ConfigError, match="task"):
        _ = Subject("dataset", "uneven", Uneven).with_options({"task": "completion"}).config


def test_instances_can_be_copied() -> None:
    pixels = Both(ImageOptions(task="completion"), root=Path())
    assert copy.deepcopy(pixels).spec("test", TaskShape(1, 1, 1)).kind is REGRESSION


def test_every_spec_has_the_number_of_training_classes() -> None:
    data = Uneven(Options(), root=Path())
    assert [data.spec(split, TaskShape(2, 1, 1)).classes for split in SIZES] == [5, 5, 5]
    assert list(data.class_sizes("test")) == SIZES["test"]


def test_pools_must_be_defined() -> None:
    class Poolless(ImageDataset):
        Config = Options

    with pytest.raises(TypeError, match="pool"):
        Poolless()  # type: ignore[abstract, call-arg]
