"""Samples classification tasks from a pool of classes, vectorised over episodes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.data.class_pool import ClassPool, check_shape
from metaforge.data.random_numbers import Bits, Indices, bits, episode_keys, random_order, sample_without_replacement


def sample_episodes(pool: ClassPool, shape: TaskShape, first: int, count: int, *, seed: int, split: str) -> Task:
    """Return episodes `first` to `first + count - 1` as one batched task.

    Each episode is a pure function of pool, shape, seed, split and its number. Its classes, their labels, the images of
    each class and the order of the examples are random. Support and query sets share no image.

    Args:
        pool: The classes to sample from.
        shape: Ways, shots and queries of a task.
        first: Number of the first episode.
        count: Number of episodes.
        seed: Seed of the episodes.
        split: Name of the split.

    Returns:
        A task with a leading task dimension: x `[count, n, C, H, W]` uint8 and y `[count, n]` int64, where `n` is
        `ways * shots` for the support set and `ways * queries` for the query set.

    Raises:
        ConfigError: A classification task cannot have this shape, or `first` or `count` is negative.
        DataError: The pool is too small for the shape.

    Example:
        >>> import numpy as np
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge.data import ClassPool, sample_episodes
        >>> pool = ClassPool(np.zeros((30, 20, 1, 8, 8), dtype=np.uint8), [str(i) for i in range(30)])
        >>> tasks = sample_episodes(pool, TaskShape(ways=5, shots=1, queries=15), 0, 4, seed=0, split="train")
        >>> tasks.support.x.shape, tasks.query.y.shape
        (torch.Size([4, 5, 1, 8, 8]), torch.Size([4, 75]))
    """
    check_shape(pool, shape)
    keys = bits(episode_keys(seed, split, first, count), 4)
    # The classes are drawn in random order, so a class's position can serve as its label.
    classes = sample_without_replacement(keys[:, 0], len(pool.names), shape.ways)
    images = sample_without_replacement(bits(keys[:, 1], shape.ways), pool.per_class, shape.shots + shape.queries)
    return Task(
        support=_examples(pool, classes, images[..., : shape.shots], keys[:, 2]),
        query=_examples(pool, classes, images[..., shape.shots :], keys[:, 3]),
    )


def _examples(pool: ClassPool, classes: Indices, images: Indices, keys: Bits) -> Examples:
    """Return one half of each task, in random order, from class numbers `[count, ways]` and image numbers.

    Image numbers `[count, ways, per_class]` are those of each class. Returns x `[count, ways * per_class, C, H, W]` and
    y `[count, ways * per_class]`.
    """
    count, ways, per_class = images.shape
    order = random_order(bits(keys, ways * per_class))
    labels = order // per_class
    class_numbers = np.take_along_axis(classes, labels, axis=1)
    image_numbers = np.take_along_axis(images.reshape(count, ways * per_class), order, axis=1)
    x = pool.take(class_numbers.reshape(-1), image_numbers.reshape(-1))
    return Examples(x=_tensor(x.reshape(count, ways * per_class, *pool.image_shape)), y=_tensor(labels))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
