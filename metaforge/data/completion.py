"""Samples image completion tasks from a pool of classes: a task is one image, and its examples are pixels.

Garnelo et al., "Conditional Neural Processes", ICML 2018, section 4.2.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.data.class_pool import ClassPool
from metaforge.data.episodes import quarter_turns
from metaforge.data.random_numbers import bits, episode_keys, random_order, sample_without_replacement
from metaforge.errors import DataError


def sample_completions(pool: ClassPool, shape: TaskShape, first: int, count: int, *, seed: int, split: str) -> Task:
    """Return image completion tasks `first` to `first + count - 1` as one batched task.

    Each task is a pure function of pool, shape, seed, split and its number. All images of the pool are equally
    probable; rotations and other changes are those of classification tasks. The order of the pixels is random. The
    first are the support set and the next are the queries, so a larger support set has the pixels of a smaller one.

    Args:
        pool: The classes whose images are drawn.
        shape: One way, and the numbers of pixels in the support and query set.
        first: Number of the first task.
        count: Number of tasks.
        seed: Seed of the tasks.
        split: Name of the split.

    Returns:
        A task with a leading task dimension, of float32: x `[count, n, 2]` are row and column of a pixel, from -1 (the
        first) to 1 (the last), and y `[count, n, C]` its values, from 0 to 1 if the images of the pool are uint8.

    Raises:
        ConfigError: `first` or `count` is negative.
        DataError: The shape has more than one way, no pixels, or more than an image has.

    Example:
        >>> import numpy as np
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge.data import ClassPool, sample_completions
        >>> pool = ClassPool(np.zeros((30, 20, 3, 8, 8), dtype=np.uint8), [str(i) for i in range(30)])
        >>> tasks = sample_completions(pool, TaskShape(ways=1, shots=10, queries=54), 0, 4, seed=0, split="train")
        >>> tasks.support.x.shape, tasks.query.y.shape
        (torch.Size([4, 10, 2]), torch.Size([4, 54, 3]))
    """
    check_pixels(pool, shape)
    channels, height, width = pool.image_shape
    keys = bits(episode_keys(seed, split, first, count), 4)
    ends = pool.class_sizes.cumsum()
    numbers = sample_without_replacement(keys[:, 0], int(ends[-1]), 1)[:, 0]
    classes = np.searchsorted(ends, numbers, side="right")
    turns = quarter_turns(keys[:, 1], 1)[:, 0] if pool.rotate else None
    images = pool.draw(classes, numbers - (ends - pool.class_sizes)[classes], turns, keys[:, 2])
    order = random_order(bits(keys[:, 3], height * width))[:, : shape.shots + shape.queries]
    values = np.take_along_axis(images.reshape(count, channels, -1), order[:, None], axis=2).swapaxes(1, 2)
    x, y = _places(height, width)[order], values.astype(np.float32)
    if values.dtype == np.uint8:
        y /= 255
    support, query = (
        Examples(*(torch.from_numpy(np.ascontiguousarray(array[:, part])) for array in (x, y)))
        for part in (slice(shape.shots), slice(shape.shots, None))
    )
    return Task(support, query)


def check_pixels(pool: ClassPool, shape: TaskShape) -> None:
    """Raise an error if image completion tasks of a shape cannot be sampled from a pool.

    Args:
        pool: The classes whose images are drawn.
        shape: Ways, shots and queries of a task.

    Raises:
        DataError: The shape has more than one way, no pixels, or more than an image has; or the pool has no image.
    """
    _, height, width = pool.image_shape
    if not len(pool.names):
        raise DataError("the split has no images", where="task shape", remedy="use a split that has images")
    if shape.ways != 1 or shape.shots < 1 or shape.queries < 1:
        raise DataError(
            f"an image completion task cannot have {shape.ways} ways, {shape.shots} shots and {shape.queries} queries",
            where="task shape",
            remedy="set ways = 1, and shots and queries (numbers of pixels) to 1 or more",
        )
    if shape.shots + shape.queries > height * width:
        shots = min(shape.shots, height * width - 1)
        raise DataError(
            f"{shape.shots} + {shape.queries} pixels of an image were requested; an image of {height} x {width} has"
            f" {height * width}",
            where="task shape",
            remedy=f"use shots + queries of at most {height * width}; the largest task near this one: shots = {shots},"
            f" queries = {min(shape.queries, height * width - shots)}",
        )


def _places(height: int, width: int) -> NDArray[np.float32]:
    """Return row and column of each pixel `[height * width, 2]`, from -1 to 1."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([rows, columns], axis=-1).reshape(-1, 2).astype(np.float32)
