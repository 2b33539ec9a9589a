"""Episodes whose numbers of classes and examples vary: how they are composed.

The number of classes is uniform. All classes of an episode have the same number of queries, at most half of its
smallest class. The size of the support set is drawn from what is left of the classes, and divided among them in
proportion to their sizes times a random weight, so that it is imbalanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from metaforge.authoring.protocols import Dataset, TaskShape, TaskSpec
from metaforge.data.random_numbers import bits, episode_keys, sample_without_replacement, uniforms
from metaforge.errors import DataError


@dataclass(frozen=True)
class EpisodeBounds:
    """Bounds of the numbers of classes and examples of an episode.

    Attributes:
        min_ways: Smallest number of classes.
        max_ways: Largest number of classes.
        queries: Largest number of query examples per class; all classes of an episode have the same number.
        support: Largest number of support examples of an episode.
        class_support: The number up to which the examples of a class count when the size of the support set is drawn.
        imbalance: Largest factor by which chance multiplies or divides the share of a class in the support set.
    """

    min_ways: int = 5
    max_ways: int = 50
    queries: int = 10
    support: int = 500
    class_support: int = 100
    imbalance: float = 2.0


class Composition(NamedTuple):
    """What an episode is made of: the numbers of its classes, the shots of each, and the queries per class."""

    classes: list[int]
    shots: list[int]
    queries: int


def largest_ways(sizes: Sequence[int], bounds: EpisodeBounds) -> int:
    """Return the largest number of classes of an episode.

    Args:
        sizes: The number of examples of each class of the split.
        bounds: The bounds of the episodes.

    Raises:
        DataError: Too few classes have the two examples that a class needs.
    """
    usable = sum(size >= 2 for size in sizes)
    if usable < bounds.min_ways:
        raise DataError(
            f"varied tasks of {bounds.min_ways} or more classes were requested; the split has {usable} classes of 2 or"
            " more examples",
            where="task shape",
            remedy=f"set varied.min_ways to at most {usable}"
            if usable >= 2
            else "use a data set that has class sizes, or set task.sampler and train.sampler to fixed",
        )
    return min(bounds.max_ways, usable)


def compose(sizes: Sequence[int], bounds: EpisodeBounds, number: int, *, seed: int, split: str) -> Composition:
    """Return what an episode is made of, a pure function of the arguments.

    Args:
        sizes: The number of examples of each class of the split.
        bounds: The bounds of the numbers.
        number: Number of the episode.
        seed: Seed of the episodes.
        split: Name of the split.

    Raises:
        DataError: Too few classes have the two examples that a class needs.
    """
    most = largest_ways(sizes, bounds)
    keys = bits(episode_keys(seed, f"{split}/composition", number, 1)[0], 4)
    ways = bounds.min_ways + int(uniforms(keys[0], 1)[0] * (most - bounds.min_ways + 1))
    all_sizes = np.asarray(sizes, dtype=np.int64)
    usable = np.flatnonzero(all_sizes >= 2)
    classes = usable[sample_without_replacement(keys[1], len(usable), ways)]
    own = all_sizes[classes]
    # A class gives at most half of its examples to the query set, and at least one to the support set.
    queries = min(bounds.queries, int(own.min()) // 2)
    rest = own - queries
    share = uniforms(keys[2], 1)[0]
    total = min(int(np.floor(share * np.minimum(bounds.class_support, rest) + 1).sum()), bounds.support)
    weights = own * bounds.imbalance ** (2 * uniforms(keys[3], ways) - 1)
    shots = np.minimum(np.floor(weights / weights.sum() * (total - ways)).astype(np.int64) + 1, rest)
    return Composition(classes.tolist(), shots.tolist(), queries)


def varied_spec(dataset: Dataset, split: str, bounds: EpisodeBounds, ways: int | None = None) -> TaskSpec:
    """Return the specification of varied tasks of a number of classes, by default the largest.

    The shots and queries of its shape are 0: they differ from class to class, and from task to task.

    Raises:
        DataError: The split cannot have such tasks.
    """
    most = largest_ways(dataset.class_sizes(split), bounds)
    spec = dataset.spec(split, TaskShape(bounds.min_ways, 1, 1))
    ways = most if ways is None else ways
    return replace(spec, outputs=ways, shape=TaskShape(ways, 0, 0))
