"""Samples classification tasks from a pool of classes, vectorised over episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.data.class_pool import ClassPool, check_draw, check_shape
from metaforge.data.random_numbers import Bits, Indices, bits, episode_keys, random_order, sample_without_replacement


def sample_episodes(pool: ClassPool, shape: TaskShape, first: int, count: int, *, seed: int, split: str) -> Task:
    """Return episodes `first` to `first + count - 1` as one batched task.

    Each episode is a pure function of pool, shape, seed, split and its number. Its classes, their labels, the images of
    each class and the order of the examples are random, and so are rotations and other changes of the images, if the
    pool has `rotate` or `augment`. Support and query sets share no image. If classes have different numbers of images,
    only those with enough of them are drawn.

    Args:
        pool: The classes to sample from.
        shape: Ways, shots and queries of a task.
        first: Number of the first episode.
        count: Number of episodes.
        seed: Seed of the episodes.
        split: Name of the split.

    Returns:
        A task with a leading task dimension: x `[count, n, C, H, W]` uint8 and y `[count, n]` int64, where `n` is
        `ways * shots` for the support set and `ways * queries` for the query set; and the classes `[count, ways]`.

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
    keys = bits(episode_keys(seed, split, first, count), 5)
    # The classes are drawn in random order, so a class's position can serve as its label.
    needed = shape.shots + shape.queries
    large = None if pool.sizes is None else np.flatnonzero(pool.sizes >= needed)
    classes = sample_without_replacement(keys[:, 0], len(pool.names if large is None else large), shape.ways)
    classes = classes if large is None else large[classes]
    sizes = pool.per_class if pool.sizes is None else pool.sizes[classes]
    images = sample_without_replacement(bits(keys[:, 1], shape.ways), sizes, needed)
    turns = quarter_turns(keys[:, 4], shape.ways) if pool.rotate else None
    return Task(
        support=_examples(pool, classes, images[..., : shape.shots], turns, keys[:, 2]),
        query=_examples(pool, classes, images[..., shape.shots :], turns, keys[:, 3]),
        classes=_tensor(classes),
    )


def draw_episode(
    pool: ClassPool, classes: Sequence[int], shots: Sequence[int], queries: int, number: int, *, seed: int, split: str
) -> Task:
    """Return one task of given classes, each with its own number of support examples: `Dataset.draw` for a pool.

    The images and the order of the examples are a pure function of the arguments. Support and query set share no image.

    Args:
        pool: The classes to draw from.
        classes: The numbers of the task's classes `[ways]`; the class `classes[i]` has the label i.
        shots: Number of support examples of each class `[ways]`.
        queries: Number of query examples per class.
        number: Number of the episode.
        seed: Seed of the episodes.
        split: Name of the split.

    Returns:
        A task: x `[n, C, H, W]` uint8 and y `[n]` int64, where `n` is `sum(shots)` for the support set and
        `ways * queries` for the query set; and the classes `[ways]`.

    Raises:
        ConfigError: There are fewer than 2 classes, 1 shot or 1 query, or a class is named twice.
        DataError: There is no class of a number, or it has too few images.

    Example:
        >>> import numpy as np
        >>> from metaforge.data import ClassPool, draw_episode
        >>> pool = ClassPool(np.zeros((30, 20, 1, 8, 8), dtype=np.uint8), [str(i) for i in range(30)])
        >>> task = draw_episode(pool, classes=[7, 3], shots=[1, 4], queries=2, number=0, seed=0, split="train")
        >>> task.support.y.bincount(), task.query.y.bincount(), task.classes
        (tensor([1, 4]), tensor([2, 2]), tensor([7, 3]))
    """
    check_draw(pool, classes, shots, queries)
    keys = bits(episode_keys(seed, f"{split}/drawn", number, 1)[0], 4)
    turns = quarter_turns(keys[3], len(classes)) if pool.rotate else None
    drawn = [
        sample_without_replacement(key, int(pool.class_sizes[klass]), count + queries)
        for key, klass, count in zip(bits(keys[0], len(classes)), classes, shots, strict=True)
    ]
    parts = []
    for key, counts, chosen in (
        (keys[1], list(shots), [images[:count] for images, count in zip(drawn, shots, strict=True)]),
        (keys[2], [queries] * len(classes), [images[count:] for images, count in zip(drawn, shots, strict=True)]),
    ):
        order_keys, image_keys = bits(key, 2 * sum(counts)).reshape(2, -1)
        order = random_order(order_keys)
        labels = np.repeat(np.arange(len(classes)), counts)[order]
        own = None if turns is None else turns[labels]
        numbers = np.asarray(classes, dtype=np.int64)[labels]
        x = pool.draw(numbers, np.concatenate(chosen)[order], own, image_keys)
        parts.append(Examples(_tensor(x), _tensor(labels)))
    support, query = parts
    return Task(support, query, torch.tensor(list(classes)))


def quarter_turns(keys: Bits, ways: int) -> Indices:
    """Return random numbers of quarter turns, 0 to 3, for each class of a task `[..., ways]`."""
    return (bits(keys, ways) >> np.uint64(62)).astype(np.int64)


def _examples(pool: ClassPool, classes: Indices, images: Indices, turns: Indices | None, keys: Bits) -> Examples:
    """Return one half of each task, in random order, from class numbers `[count, ways]` and image numbers.

    Image numbers `[count, ways, per_class]` are those of each class, and `turns` `[count, ways]` the quarter turns by
    which the task rotates its classes. Returns x `[count, ways * per_class, C, H, W]` and
    y `[count, ways * per_class]`.
    """
    count, ways, per_class = images.shape
    random = bits(keys, 2 * ways * per_class)
    order = random_order(random[:, : ways * per_class])
    labels = order // per_class
    class_numbers = np.take_along_axis(classes, labels, axis=1)
    image_numbers = np.take_along_axis(images.reshape(count, ways * per_class), order, axis=1)
    own = None if turns is None else np.take_along_axis(turns, labels, axis=1).reshape(-1)
    image_keys = random[:, ways * per_class :].reshape(-1)
    x = pool.draw(class_numbers.reshape(-1), image_numbers.reshape(-1), own, image_keys)
    return Examples(x=_tensor(x.reshape(count, ways * per_class, *pool.image_shape)), y=_tensor(labels))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
