"""Tests of varied episodes: their composition keeps all bounds, is a pure function, and has the right distribution."""

from __future__ import annotations

import numpy as np
import pytest

from metaforge.data.varied import EpisodeBounds, compose, largest_ways
from metaforge.errors import DataError

SIZES = [2 + (37 * number) % 199 for number in range(80)]
BOUNDS = EpisodeBounds()


@pytest.mark.parametrize(
    ("sizes", "bounds"),
    [
        (SIZES, BOUNDS),
        ([20] * 964, BOUNDS),
        ([5000] * 60, BOUNDS),
        ([2] * 7 + [1] * 20, BOUNDS),
        (SIZES, EpisodeBounds(min_ways=5, max_ways=5, queries=3, support=5)),
        (SIZES, EpisodeBounds(min_ways=2, max_ways=9, imbalance=1000.0, class_support=3)),
    ],
)
def test_every_composition_keeps_all_bounds(sizes: list[int], bounds: EpisodeBounds) -> None:
    most = largest_ways(sizes, bounds)
    for number in range(300):
        classes, shots, queries = compose(sizes, bounds, number, seed=3, split="train")
        own = [sizes[index] for index in classes]
        assert bounds.min_ways <= len(classes) <= most
        assert len({*classes}) == len(classes) == len(shots)
        assert 1 <= queries <= min(bounds.queries, min(own) // 2)
        assert all(1 <= count <= size - queries for count, size in zip(shots, own, strict=True))
        assert len(classes) <= sum(shots) <= bounds.support


def test_a_composition_depends_on_seed_split_and_number_only() -> None:
    def composed(number: int = 4, seed: int = 1, split: str = "train") -> tuple[object, ...]:
        return tuple(compose(SIZES, BOUNDS, number, seed=seed, split=split))

    assert composed() == composed()
    # An episode must be the same on every machine and in every later version.
    known = compose(SIZES, EpisodeBounds(max_ways=6), 4, seed=1, split="train")
    assert known == ([18, 12, 2, 5, 74, 43], [36, 35, 66, 73, 127, 104], 10)
    assert len({str(composed(**other)) for other in ({}, {"number": 5}, {"seed": 2}, {"split": "val"})}) == 4


def test_the_numbers_have_their_distributions() -> None:
    episodes = [compose([1000] * 200, BOUNDS, number, seed=0, split="train") for number in range(4000)]
    ways = np.bincount([len(episode.classes) for episode in episodes], minlength=51)[5:]
    # Uniform over the 46 numbers from 5 to 50.
    assert abs(ways / ways.mean() - 1).max() < 0.5
    assert len(ways) == 46
    assert {episode.queries for episode in episodes} == {10}
    # The support set is share * 100 per class, and at most 500: for 5 classes, uniform between 5 and 500.
    few = [sum(shots) for classes, shots, _ in episodes if len(classes) == 5]
    assert abs(np.mean(few) - 250) < 60
    many = [sum(shots) for classes, shots, _ in episodes if len(classes) == 50]
    # Above a share of 0.1 it is capped; rounding down takes less than one example per class.
    assert np.mean([450 < total <= 500 for total in many]) > 0.8
    # Weights are between 1/2 and 2, so that a class has at most four times the examples of another one.
    ratios = [(max(shots) - 1) / (min(shots) + 1) for _, shots, _ in episodes if sum(shots) > 400]
    assert 1.5 < np.mean(ratios) < 4
    assert max(ratios) < 4


def test_larger_classes_get_more_examples() -> None:
    sizes = [20, 200] * 50
    pairs = [
        (sizes[index], count)
        for number in range(300)
        for index, count in zip(*compose(sizes, BOUNDS, number, seed=0, split="train")[:2], strict=True)
    ]
    small, large = (np.mean([count for size, count in pairs if size == each]) for each in (20, 200))
    assert large > 4 * small


def test_too_few_usable_classes_are_refused() -> None:
    with pytest.raises(DataError, match="the split has 4 classes of 2 or more") as caught:
        compose([9, 9, 9, 9, 1, 1], BOUNDS, 0, seed=0, split="train")
    assert "varied.min_ways to at most 4" in caught.value.remedy
    with pytest.raises(DataError, match="the split has 0 classes"):
        largest_ways([], BOUNDS)
