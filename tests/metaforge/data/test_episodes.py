"""Episodes are values: independent of how they are asked for, fair to every class and image, and fast."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
import torch

from metaforge.authoring.protocols import Task, TaskShape
from metaforge.data.episodes import (
    ClassPool,
    Indices,
    Pixels,
    bits,
    check_split,
    distinct,
    episode_keys,
    feasible,
    sample_episodes,
    uniforms,
)
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


def test_episodes_do_not_depend_on_how_they_are_asked_for() -> None:
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
    """The numbers are part of the format: an episode is to be the same on any machine and in any later version."""
    keys = episode_keys(0, "test", 0, 2)
    assert [hex(key) for key in keys.tolist()] == KNOWN_KEYS
    task = sample_episodes(coded(100), TaskShape(5, 1, 1), 0, 1, seed=0, split="test")
    assert decode(task.support.x)[0][0].tolist() == KNOWN_CLASSES
    assert task.support.y[0].tolist() == KNOWN_LABELS


@pytest.mark.parametrize(("population", "count"), [(20, 16), (20, 20), (6, 1), (1000, 5), (81, 20)])
def test_distinct_draws_are_uniform_in_every_position(population: int, count: int) -> None:
    draws = 60_000
    chosen = distinct(episode_keys(0, "uniform", 0, draws), population, count)
    assert chosen.shape == (draws, count)
    ordered = np.sort(chosen, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    assert ordered.min() >= 0
    assert ordered.max() < population
    for position in {0, count // 2, count - 1}:
        counts = np.bincount(chosen[:, position], minlength=population)
        expected = draws / population
        chi = ((counts - expected) ** 2 / expected).sum()
        # Six standard deviations of chi-square with `population - 1` degrees of freedom.
        assert abs(chi - (population - 1)) < 6 * np.sqrt(2 * population)


def test_labels_and_order_tell_nothing_of_classes() -> None:
    task = sample_episodes(coded(10), TaskShape(5, 1, 4), 0, 20_000, seed=0, split="train")
    klass, image = decode(task.query.x)
    table = np.zeros((10, 5))
    np.add.at(table, (klass.flatten().numpy(), task.query.y.flatten().numpy()), 1)
    assert abs(table / table.mean() - 1).max() < 0.1
    by_position = torch.stack([(task.query.y == label).double().mean(0) for label in range(5)])
    assert (by_position - 0.2).abs().max() < 0.02
    assert np.bincount(image.flatten().numpy(), minlength=20).std() / (image.numel() / 20) < 0.02


def test_uniforms_fill_the_unit_interval_and_are_not_correlated() -> None:
    numbers = uniforms(episode_keys(0, "u", 0, 50_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.allclose(numbers.mean(0), 0.5, atol=0.008)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    assert np.abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 0.03
    assert len(np.unique(bits(episode_keys(0, "u", 0, 10_000), 8))) == 80_000


def test_turns_are_anticlockwise_and_share_the_pixels() -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (3, 20, 1, 6, 6)).astype(np.uint8)
    rows, turns = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    pool = ClassPool(pixels, [f"{r}/{t}" for r, t in zip(rows, turns, strict=True)], rows=rows, turns=turns)
    taken = pool.take(np.arange(12), np.full(12, 5))
    for number in range(12):
        assert np.array_equal(taken[number], np.rot90(pixels[rows[number], 5], turns[number], axes=(-2, -1)))
    assert pool.images is pixels


def test_a_lazy_source_gives_the_same_episodes() -> None:
    held = coded(12)

    class Lazy:
        shape = held.images.shape

        def take(self, classes: Indices, images: Indices) -> Pixels:
            assert isinstance(held.images, np.ndarray)
            return held.images[classes, images]

    lazy = ClassPool(Lazy(), held.names)
    for a, b in zip(
        *(leaves(sample_episodes(pool, TaskShape(5, 1, 2), 3, 9, seed=1, split="val")) for pool in (held, lazy)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("shape", "setting"),
    [
        (TaskShape(40, 1, 15), "ways = 30, shots = 1, queries = 15"),
        (TaskShape(5, 10, 15), "ways = 5, shots = 10, queries = 10"),
        (TaskShape(5, 50, 15), "ways = 5, shots = 19, queries = 1"),
        (TaskShape(99, 20, 15), "ways = 30, shots = 19, queries = 1"),
    ],
)
def test_too_large_a_task_names_what_there_is_and_the_largest(shape: TaskShape, setting: str) -> None:
    pool = coded(30)
    with pytest.raises(DataError, match="30 classes of 20 images") as caught:
        sample_episodes(pool, shape, 0, 1, seed=0, split="train")
    assert setting in caught.value.remedy
    assert f"{shape.ways} classes with {shape.shots} + {shape.queries}" in str(caught.value)
    numbers = [int(part.split(" = ")[1]) for part in setting.split(", ")]
    feasible(pool, TaskShape(*numbers))


@pytest.mark.parametrize("shape", [TaskShape(1, 1, 1), TaskShape(5, 0, 1), TaskShape(5, 1, 0), TaskShape(-2, 1, 1)])
def test_a_shape_that_is_no_task_is_a_setting_error(shape: TaskShape) -> None:
    with pytest.raises(ConfigError, match="is no classification task"):
        feasible(coded(30), shape)


def test_wrong_pools_and_indices_are_refused() -> None:
    good = np.zeros((3, 4, 1, 2, 3), dtype=np.uint8)
    names = ["a", "b", "c"]
    for images, others in ((good[0], {}), (good.astype(np.float32), {}), (good, {"turns": np.ones(3, dtype=np.int64)})):
        with pytest.raises(DataError):
            ClassPool(images, names, **others)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="do not match"):
        ClassPool(good, names[:2])
    with pytest.raises(DataError, match="at least 2 classes"):
        feasible(ClassPool(good[:1], ["a"]), TaskShape(5, 1, 1))
    with pytest.raises(ConfigError, match="do not exist"):
        episode_keys(0, "train", -1, 5)
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        check_split("trian", ("train", "test"), "somewhere")


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
