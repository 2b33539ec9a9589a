"""Tests of the base class of image data sets: what a subclass gets for its pools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaforge.authoring import Options, TaskShape
from metaforge.data import ClassPool, ImageDataset
from metaforge.errors import DataError
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


@parametrize_with_checks([Subject("dataset", "uneven", Uneven, shape=TaskShape(3, 1, 2))])
def test_a_subclass_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


def test_every_spec_has_the_number_of_training_classes() -> None:
    data = Uneven(Options(), root=Path())
    assert [data.spec(split, TaskShape(2, 1, 1)).classes for split in SIZES] == [5, 5, 5]
    assert list(data.class_sizes("test")) == SIZES["test"]


def test_pools_must_be_defined() -> None:
    class Poolless(ImageDataset):
        Config = Options

    with pytest.raises(TypeError, match="pool"):
        Poolless()  # type: ignore[abstract, call-arg]
