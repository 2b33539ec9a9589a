"""Tests of image completion tasks: their examples are an image's own pixels, and their images are those of a split."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from metaforge.authoring.protocols import TaskShape
from metaforge.data.class_pool import ClassPool, Features
from metaforge.data.completion import sample_completions
from metaforge.data.random_numbers import Bits
from metaforge.errors import ConfigError, DataError

HEIGHT, WIDTH = 5, 7
SIZES = np.array([3, 1, 4])
ALL = TaskShape(1, 10, HEIGHT * WIDTH - 10)


def images(
    classes: int = 3, per_class: int = 4, channels: int = 3, side: tuple[int, int] = (HEIGHT, WIDTH)
) -> ClassPool:
    """Return a pool of random images, of classes of unequal sizes if there are three."""
    shape = (classes, per_class, channels, *side)
    drawn = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return ClassPool(drawn, [str(i) for i in range(classes)], sizes=SIZES if classes == 3 else None)


def whole(pool: ClassPool, shape: TaskShape, first: int, count: int, split: str = "train") -> torch.Tensor:
    """Return the images `[count, C, H, W]` that all examples of completion tasks together give, with all places."""
    task = sample_completions(pool, shape, first, count, seed=3, split=split)
    x, y = (torch.cat(pair, dim=1) for pair in zip(task.support, task.query, strict=True))
    channels, height, width = pool.image_shape
    assert x.dtype == y.dtype == torch.float32
    rows, columns = x.unbind(-1)
    # The place of each pixel is exact: the grid is even, from -1 to 1.
    number = torch.stack([(rows + 1) / 2 * (height - 1), (columns + 1) / 2 * (width - 1)], -1)
    torch.testing.assert_close(number, number.round(), rtol=0, atol=1e-5)
    places = number.round().long()
    flat = places[..., 0] * width + places[..., 1]
    assert (flat.sort(1).values == torch.arange(height * width)).all(), "each place occurs once"
    found = torch.full((count, height * width, channels), torch.nan)
    found.scatter_(1, flat.unsqueeze(-1).expand_as(y), y)
    return found.mT.reshape(count, channels, height, width)


def test_the_examples_of_a_task_are_the_pixels_of_one_image_of_the_pool() -> None:
    pool = images()
    assert isinstance(pool.images, np.ndarray)
    own = torch.from_numpy(np.concatenate([pool.images[i, :size] for i, size in enumerate(SIZES)])).float() / 255
    found = whole(pool, ALL, 0, 400)
    equal = (found[:, None] == own).flatten(2).all(-1)
    assert (equal.sum(1) == 1).all()
    # Every image is equally probable, whatever the size of its class: 50 of 400 on average.
    assert 25 < equal.sum(0).min() <= equal.sum(0).max() < 75


def test_support_and_query_set_share_no_pixel_and_their_order_is_random() -> None:
    task = sample_completions(images(), TaskShape(1, 4, 6), 0, 300, seed=0, split="train")
    assert (task.support.x.shape, task.support.y.shape) == ((300, 4, 2), (300, 4, 3))
    assert (task.query.x.shape, task.query.y.shape, task.classes) == ((300, 6, 2), (300, 6, 3), ())
    everything = torch.cat([task.support.x, task.query.x], 1)
    assert all(len(one.unique(dim=0)) == 10 for one in everything)
    # Every place comes first in some task.
    assert len(task.support.x[:, 0].unique(dim=0)) == HEIGHT * WIDTH


def test_a_task_depends_on_seed_split_and_number_alone() -> None:
    pool = images()
    batch = sample_completions(pool, ALL, 5, 6, seed=3, split="test")
    for index in range(6):
        alone = sample_completions(pool, ALL, 5 + index, 1, seed=3, split="test")
        for part, other in zip((batch.support, batch.query), (alone.support, alone.query), strict=True):
            assert torch.equal(part.x[index], other.x[0])
            assert torch.equal(part.y[index], other.y[0])
    for changed in ({"seed": 4}, {"split": "train"}):
        other = sample_completions(pool, ALL, 5, 6, **{"seed": 3, "split": "test"} | changed)
        assert not torch.equal(batch.support.x, other.support.x)


def test_a_larger_support_set_has_the_pixels_of_a_smaller_one_of_the_same_image() -> None:
    pool = images()
    small, large = (sample_completions(pool, TaskShape(1, n, 5), 0, 8, seed=0, split="train") for n in (3, 20))
    assert torch.equal(small.support.x, large.support.x[:, :3])
    assert torch.equal(small.support.y, large.support.y[:, :3])
    assert torch.equal(small.query.y, large.support.y[:, 3:8])


def test_images_are_rotated_and_augmented_as_those_of_classification_tasks_are() -> None:
    square = images(1, 1, 1, (6, 6))
    turned = ClassPool(square.images, square.names, rotate=True)
    (plain,) = whole(square, TaskShape(1, 1, 35), 0, 1)
    found = whole(turned, TaskShape(1, 1, 35), 0, 100)
    counts = torch.stack([(found == plain.rot90(k, (-2, -1))).flatten(1).all(1) for k in range(4)]).sum(1)
    assert counts.sum() == 100
    assert counts.min() > 10

    def inverted(taken: Features, keys: Bits) -> Features:
        assert len(set(keys.tolist())) == len(taken)
        return 255 - taken

    augmented = ClassPool(square.images, square.names, augment=inverted)
    torch.testing.assert_close(whole(augmented, TaskShape(1, 1, 35), 0, 1)[0], 1 - plain)


def test_floating_point_values_stay_as_they_are() -> None:
    pool = ClassPool(np.linspace(-3, 3, 12, dtype=np.float32).reshape(1, 1, 1, 3, 4), ["a"])
    (found,) = whole(pool, TaskShape(1, 2, 10), 0, 1)
    assert isinstance(pool.images, np.ndarray)
    assert torch.equal(found, torch.from_numpy(pool.images[0, 0]))


@pytest.mark.parametrize("shape", [TaskShape(2, 1, 1), TaskShape(1, 0, 1), TaskShape(1, 1, 0)])
def test_shapes_that_no_image_has_are_refused(shape: TaskShape) -> None:
    with pytest.raises(DataError, match="an image completion task cannot have"):
        sample_completions(images(), shape, 0, 1, seed=0, split="train")


def test_more_pixels_than_an_image_has_are_refused_with_the_largest_task_near_it() -> None:
    with pytest.raises(DataError, match=r"30 [+] 6 pixels .* an image of 5 x 7 has 35") as caught:
        sample_completions(images(), TaskShape(1, 30, 6), 0, 1, seed=0, split="train")
    assert "shots = 30, queries = 5" in str(caught.value)
    with pytest.raises(DataError, match="shots = 34, queries = 1"):
        sample_completions(images(), TaskShape(1, 99, 6), 0, 1, seed=0, split="train")


def test_a_split_without_images_and_negative_numbers_are_refused() -> None:
    empty = ClassPool(np.zeros((0, 4, 1, 5, 7), dtype=np.uint8), [])
    with pytest.raises(DataError, match="the split has no images"):
        sample_completions(empty, ALL, 0, 1, seed=0, split="train")
    with pytest.raises(ConfigError, match="do not exist"):
        sample_completions(images(), ALL, -1, 1, seed=0, split="train")


def test_sampling_is_quick() -> None:
    pool = images(100, 20, 1, (28, 28))
    times = []
    for first in range(0, 320, 64):
        start = time.perf_counter()
        sample_completions(pool, TaskShape(1, 100, 100), first, 64, seed=0, split="train")
        times.append(time.perf_counter() - start)
    # Measured: 1 ms of processor time. The limit leaves room for what else the machine does.
    assert min(times) < 0.03
