"""Tests of class pools: rotated classes share pixels, and shapes or splits that cannot be sampled are refused."""

from __future__ import annotations

import numpy as np
import pytest

from metaforge.authoring.protocols import TaskShape
from metaforge.data.class_pool import ClassPool, check_shape, check_split
from metaforge.errors import ConfigError, DataError


def thirty_classes() -> ClassPool:
    return ClassPool(np.zeros((30, 20, 1, 2, 2), dtype=np.uint8), [str(i) for i in range(30)])


def test_rotations_are_anticlockwise_and_share_the_pixels() -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (3, 20, 1, 6, 6)).astype(np.uint8)
    rows, turns = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    pool = ClassPool(pixels, [f"{r}/{t}" for r, t in zip(rows, turns, strict=True)], rows=rows, turns=turns)
    taken = pool.take(np.arange(12), np.full(12, 5))
    for number in range(12):
        assert np.array_equal(taken[number], np.rot90(pixels[rows[number], 5], turns[number], axes=(-2, -1)))
    assert pool.images is pixels


@pytest.mark.parametrize(
    ("shape", "setting"),
    [
        (TaskShape(40, 1, 15), "ways = 30, shots = 1, queries = 15"),
        (TaskShape(5, 10, 15), "ways = 5, shots = 10, queries = 10"),
        (TaskShape(5, 50, 15), "ways = 5, shots = 19, queries = 1"),
        (TaskShape(99, 20, 15), "ways = 30, shots = 19, queries = 1"),
    ],
)
def test_a_task_that_is_too_large_is_refused_with_the_largest_possible_one(shape: TaskShape, setting: str) -> None:
    pool = thirty_classes()
    with pytest.raises(DataError, match="30 classes of 20 images") as caught:
        check_shape(pool, shape)
    assert setting in caught.value.remedy
    assert f"{shape.ways} classes with {shape.shots} + {shape.queries}" in str(caught.value)
    numbers = [int(part.split(" = ")[1]) for part in setting.split(", ")]
    check_shape(pool, TaskShape(*numbers))


@pytest.mark.parametrize("shape", [TaskShape(1, 1, 1), TaskShape(5, 0, 1), TaskShape(5, 1, 0), TaskShape(-2, 1, 1)])
def test_a_shape_that_no_task_has_is_a_configuration_error(shape: TaskShape) -> None:
    with pytest.raises(ConfigError, match="a classification task cannot have"):
        check_shape(thirty_classes(), shape)


def test_invalid_pools_and_unknown_splits_are_refused() -> None:
    good = np.zeros((3, 4, 1, 2, 3), dtype=np.uint8)
    names = ["a", "b", "c"]
    for images, others in ((good[0], {}), (good.astype(np.float64), {}), (good, {"turns": np.ones(3, dtype=np.int64)})):
        with pytest.raises(DataError):
            ClassPool(images, names, **others)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="do not match"):
        ClassPool(good, names[:2])
    with pytest.raises(DataError, match="at least 2 classes"):
        check_shape(ClassPool(good[:1], ["a"]), TaskShape(5, 1, 1))
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        check_split("trian", ("train", "test"), "somewhere")


def test_classes_can_have_unequal_numbers_of_images() -> None:
    images = np.zeros((4, 9, 1, 2, 2), dtype=np.uint8)
    pool = ClassPool(images, list("abcd"), sizes=np.array([9, 2, 5, 6]))
    check_shape(pool, TaskShape(3, 2, 3))
    check_shape(pool, TaskShape(4, 1, 1))
    with pytest.raises(DataError, match="4 classes of 2 to 9 images, 3 of them with 5 or more") as caught:
        check_shape(pool, TaskShape(4, 2, 3))
    assert "ways = 4, shots = 1, queries = 1" in caught.value.remedy
    for sizes in ([9, 2, 5], [9, 2, 5, 10], [9, 0, 5, 6]):
        with pytest.raises(DataError, match="sizes"):
            ClassPool(images, list("abcd"), sizes=np.array(sizes))
