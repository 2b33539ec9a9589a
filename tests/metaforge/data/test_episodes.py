"""Tests of episode sampling: valid tasks that depend on seed, split and number alone, and its speed."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
import torch

from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.data.class_pool import ClassPool, Pixels
from metaforge.data.episodes import draw_episode, sample_episodes
from metaforge.data.random_numbers import Indices, episode_keys
from metaforge.errors import ConfigError, DataError

KNOWN_KEYS = ["0xef946a6d578c8405", "0xca3c882aae3e0c9e"]
KNOWN_CLASSES = [34, 40, 8, 3, 65]
KNOWN_LABELS = [3, 1, 2, 0, 4]


def coded(classes: int, per_class: int = 20) -> ClassPool:
    """Return a pool whose pixels say which class and image they are: `[class // 256, class % 256, image, 0]`."""
    images = np.zeros((classes, per_class, 1, 2, 2), dtype=np.uint8)
    number = np.arange(classes)[:, None]
    images[..., 0, 0, 0], images[..., 0, 0, 1] = number // 256, number % 256
    images[..., 0, 1, 0] = np.arange(per_class)
    return ClassPool(images, [str(i) for i in range(classes)])


def decode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = x.flatten(2).long()
    return flat[..., 0] * 256 + flat[..., 1], flat[..., 2]


def turns_of(plain: torch.Tensor, turned: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return by how many quarter turns each class was rotated `[ways]`; -1 if its images differ in that."""
    equal = torch.stack([(plain.rot90(k, (-2, -1)) == turned).flatten(1).all(1) for k in range(4)])
    assert (equal.sum(0) == 1).all()
    turns = equal.long().argmax(0)
    return torch.stack(
        [one[0] if (one := turns[y == label]).unique().numel() == 1 else -one[0] for label in y.unique()]
    )


def first_of(tasks: Task) -> Task:
    support, query = (Examples(part.x[0], part.y[0]) for part in (tasks.support, tasks.query))
    return Task(support, query)


def leaves(task: Task) -> list[torch.Tensor]:
    return [task.support.x, task.support.y, task.query.x, task.query.y]


@pytest.mark.parametrize("shape", [TaskShape(5, 1, 15), TaskShape(2, 3, 1), TaskShape(20, 5, 5), TaskShape(30, 19, 1)])
@pytest.mark.parametrize("classes", [30, 1623])
def test_an_episode_is_a_proper_task(shape: TaskShape, classes: int) -> None:
    task = sample_episodes(coded(classes), shape, 7, 40, seed=3, split="train")
    assert task.support.x.shape == (40, shape.ways * shape.shots, 1, 2, 2)
    assert task.query.x.shape == (40, shape.ways * shape.queries, 1, 2, 2)
    assert task.support.x.dtype == torch.uint8
    assert task.query.y.dtype == torch.int64
    for episode in range(40):
        seen: dict[int, set[int]] = {}
        pairs: set[tuple[int, int]] = set()
        for part, each in ((task.support, shape.shots), (task.query, shape.queries)):
            labels = part.y[episode]
            assert torch.equal(torch.bincount(labels, minlength=shape.ways), torch.full((shape.ways,), each))
            klass, image = (t[episode] for t in decode(part.x))
            for label, number, which in zip(labels.tolist(), klass.tolist(), image.tolist(), strict=True):
                seen.setdefault(label, set()).add(number)
                assert (number, which) not in pairs
                pairs.add((number, which))
        assert all(len(numbers) == 1 for numbers in seen.values())
        assert len(set.union(*seen.values())) == shape.ways


def test_episodes_do_not_depend_on_how_they_are_requested() -> None:
    pool, shape = coded(50), TaskShape(5, 2, 3)
    whole = leaves(sample_episodes(pool, shape, 0, 60, seed=1, split="train"))
    for cuts in ([0, 60], [0, 1, 2, 60], [0, 13, 31, 60], list(range(61))):
        parts = [
            leaves(sample_episodes(pool, shape, a, b - a, seed=1, split="train")) for a, b in itertools.pairwise(cuts)
        ]
        for tensor, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(tensor, torch.cat(pieces))


def test_seed_split_and_index_all_matter() -> None:
    pool, shape = coded(50), TaskShape(5, 1, 1)
    base = sample_episodes(pool, shape, 0, 20, seed=1, split="train").support.x
    for first, seed, split in ((20, 1, "train"), (0, 2, "train"), (0, 1, "test"), (0, -1, "train"), (0, 2**70, "val")):
        other = sample_episodes(pool, shape, first, 20, seed=seed, split=split).support.x
        assert (base != other).flatten(1).any(1).all()


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    pool, shape = coded(50), TaskShape(5, 1, 1)
    states = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    first = sample_episodes(pool, shape, 0, 5, seed=1, split="train")
    assert (random.getstate(), str(np.random.get_state())) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(5)
    second = sample_episodes(pool, shape, 0, 5, seed=1, split="train")
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def test_known_episode() -> None:
    """An episode must be the same on every machine and in every later version."""
    keys = episode_keys(0, "test", 0, 2)
    assert [hex(key) for key in keys.tolist()] == KNOWN_KEYS
    task = sample_episodes(coded(100), TaskShape(5, 1, 1), 0, 1, seed=0, split="test")
    assert decode(task.support.x)[0][0].tolist() == KNOWN_CLASSES
    assert task.support.y[0].tolist() == KNOWN_LABELS


def test_labels_and_order_tell_nothing_of_classes() -> None:
    task = sample_episodes(coded(10), TaskShape(5, 1, 4), 0, 20_000, seed=0, split="train")
    klass, image = decode(task.query.x)
    table = np.zeros((10, 5))
    np.add.at(table, (klass.flatten().numpy(), task.query.y.flatten().numpy()), 1)
    assert abs(table / table.mean() - 1).max() < 0.1
    by_position = torch.stack([(task.query.y == label).double().mean(0) for label in range(5)])
    assert (by_position - 0.2).abs().max() < 0.02
    assert np.bincount(image.flatten().numpy(), minlength=20).std() / (image.numel() / 20) < 0.02


def test_a_source_that_decodes_on_access_gives_the_same_episodes() -> None:
    in_memory = coded(12)

    class Decoding:
        shape = in_memory.images.shape

        def take(self, classes: Indices, images: Indices) -> Pixels:
            assert isinstance(in_memory.images, np.ndarray)
            return in_memory.images[classes, images]

    decoding = ClassPool(Decoding(), in_memory.names)
    for a, b in zip(
        *(
            leaves(sample_episodes(pool, TaskShape(5, 1, 2), 3, 9, seed=1, split="val"))
            for pool in (in_memory, decoding)
        ),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("turned", "least"), [(False, 15_000), (True, 3_000)])
def test_fifteen_thousand_episodes_a_second(turned: bool, least: int) -> None:
    images = np.zeros((964, 20, 1, 28, 28), dtype=np.uint8)
    rows = np.tile(np.arange(964), 4)
    pool = ClassPool(images, ["x"] * 3856, rows=rows, turns=np.repeat(np.arange(4), 964) if turned else None)
    best = 0.0
    for attempt in range(8):
        start = time.perf_counter()
        sample_episodes(pool, TaskShape(5, 1, 15), 500 * attempt, 500, seed=0, split="train")
        best = max(best, 500 / (time.perf_counter() - start))
    assert best > least


def uneven(sizes: list[int]) -> ClassPool:
    """Return a pool like `coded` whose classes have these numbers of images."""
    pool = coded(len(sizes), max(sizes))
    return ClassPool(pool.images, pool.names, sizes=np.array(sizes))


def test_class_numbers_are_those_of_the_pool() -> None:
    pool = coded(30)
    turned = ClassPool(pool.images, [str(i) for i in range(60)], np.arange(60) // 2, np.arange(60) % 2)
    for one, rows in ((pool, torch.arange(30)), (turned, torch.arange(60) // 2)):
        task = sample_episodes(one, TaskShape(5, 2, 3), 0, 50, seed=0, split="train")
        assert isinstance(task.classes, torch.Tensor)
        assert (task.classes.dtype, task.classes.shape) == (torch.int64, (50, 5))
        for part in (task.support, task.query):
            numbers = task.classes.gather(1, part.y)
            # The first pixels of an unrotated image say which row it is from.
            upright = torch.ones_like(numbers, dtype=torch.bool) if one is pool else numbers % 2 == 0
            assert torch.equal(decode(part.x)[0][upright], rows[numbers][upright])


def test_classes_of_unequal_sizes_are_drawn_if_they_have_enough_images() -> None:
    sizes = [4, 9, 3, 20, 6, 4]
    task = sample_episodes(uneven(sizes), TaskShape(3, 2, 2), 0, 400, seed=0, split="train")
    klass, image = (torch.cat(pair, 1) for pair in zip(decode(task.support.x), decode(task.query.x), strict=True))
    assert sorted(set(klass.flatten().tolist())) == [0, 1, 3, 4, 5]
    assert bool((image < torch.tensor(sizes)[klass]).all())
    # Every image of every such class is drawn.
    assert len(torch.unique(klass * 100 + image)) == sum(sizes) - sizes[2]
    equal = sample_episodes(uneven([20] * 6), TaskShape(3, 2, 2), 0, 4, seed=0, split="train")
    for episode in range(4):
        assert len({*zip(*(t[episode].tolist() for t in decode(equal.support.x)), strict=True)}) == 6


def test_an_episode_is_drawn_with_the_classes_and_numbers_that_are_asked_for() -> None:
    pool = uneven([4, 9, 3, 20])
    task = draw_episode(pool, [3, 0, 1], [17, 1, 2], 3, 5, seed=1, split="train")
    again = draw_episode(pool, [3, 0, 1], [17, 1, 2], 3, 5, seed=1, split="train")
    assert all(torch.equal(a, b) for a, b in zip(leaves(task), leaves(again), strict=True))
    assert isinstance(task.classes, torch.Tensor)
    assert task.classes.tolist() == [3, 0, 1]
    pairs = set()
    for part, counts in ((task.support, [17, 1, 2]), (task.query, [3, 3, 3])):
        assert part.y.bincount().tolist() == counts
        klass, image = (t[0] for t in decode(part.x[None]))
        assert torch.equal(klass, task.classes[part.y])
        pairs |= {*zip(klass.tolist(), image.tolist(), strict=True)}
    assert len(pairs) == 29
    for number, seed, split in ((6, 1, "train"), (5, 2, "train"), (5, 1, "test")):
        other = draw_episode(pool, [3, 0, 1], [17, 1, 2], 3, number, seed=seed, split=split)
        assert not torch.equal(other.support.x, task.support.x)


def test_an_episode_that_cannot_be_drawn_is_refused() -> None:
    pool = uneven([4, 9, 3, 20])
    for classes, shots, queries in (([0, 4], [1, 1], 1), ([0, -1], [1, 1], 1), ([0, 1], [4, 1], 1)):
        with pytest.raises(DataError, match=r"class (-1|4|0 were requested; it has 4)"):
            draw_episode(pool, classes, shots, queries, 0, seed=0, split="train")
    for classes, shots, queries in (([0], [1], 1), ([0, 0], [1, 1], 1), ([0, 1], [0, 1], 1), ([0, 1], [1, 1], 0)):
        with pytest.raises(ConfigError, match="a task cannot have the classes"):
            draw_episode(pool, classes, shots, queries, 0, seed=0, split="train")


@pytest.mark.parametrize("drawn", [False, True])
def test_a_pool_that_rotates_turns_each_class_of_a_task_as_a_whole(drawn: bool) -> None:
    plain = coded(30)
    images = np.asarray(plain.images).copy()
    # So that no image equals a rotation of itself.
    images[..., 1, 1] = 255
    plain, rotating = (ClassPool(images, plain.names, rotate=rotate) for rotate in (False, True))
    seen = set()
    for number in range(20):
        if drawn:
            pair = [
                draw_episode(pool, [4, 9, 2], [1, 2, 3], 4, number, seed=3, split="test") for pool in (plain, rotating)
            ]
        else:
            tasks = [
                sample_episodes(pool, TaskShape(3, 2, 4), number, 1, seed=3, split="test") for pool in (plain, rotating)
            ]
            pair = [first_of(task) for task in tasks]
        (before, after), ways = pair, torch.arange(3)
        support = turns_of(before.support.x, after.support.x, before.support.y)
        assert torch.equal(support, turns_of(before.query.x, after.query.x, before.query.y))
        assert torch.equal(before.query.y, after.query.y)
        assert len(support) == len(ways)
        seen.add(tuple(support.tolist()))
    # 64 are possible; twenty tasks have more than a few of them, and each class takes all four.
    assert len(seen) > 10
    assert all({turns[way] for turns in seen} == {0, 1, 2, 3} for way in range(3))
