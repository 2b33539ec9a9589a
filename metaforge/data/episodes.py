"""Class pools turned into tasks: episode i of a split under a seed is a value, computed for many episodes at once.

Every random number is a hash of where it is used (seed, split, episode, purpose, counter), so that an episode does not
depend on what was drawn before it, on how a run is cut into batches, or on any generator's state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.errors import ConfigError, DataError, nearest

Bits = NDArray[np.uint64]
Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def _mix(values: Bits) -> Bits:
    """Scramble 64-bit values one to one (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST_FACTOR
    values = (values ^ (values >> np.uint64(27))) * _SECOND_FACTOR
    return values ^ (values >> np.uint64(31))


def episode_keys(seed: int, split: str, first: int, count: int) -> Bits:
    """Return 64-bit keys `[count]` of episodes `first … first + count - 1`; `ConfigError` if one is negative."""
    if first < 0 or count < 0:
        raise ConfigError(
            f"episodes {first} to {first + count - 1} do not exist",
            where="sampling of episodes",
            remedy="ask for a first episode and a count of 0 or more",
        )
    digest = hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=16).digest()
    inner, outer = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    index = np.arange(first, first + count, dtype=np.uint64)
    return _mix(_mix(index + inner) ^ outer)


def bits(keys: Bits, count: int) -> Bits:
    """Return `count` random 64-bit numbers for each key, `[..., count]`."""
    return _mix(keys[..., None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(keys: Bits, count: int) -> NDArray[np.float64]:
    """Return `count` random numbers in [0, 1) for each key, `[..., count]`, with all 53 bits of a double."""
    return (bits(keys, count) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _order(random: Bits) -> Indices:
    """Return a random order of 0 … n - 1 along the last axis, `[..., n]`, from as many random numbers."""
    # Index and random number share one word: a plain sort of words is several times faster than an argsort.
    width = np.uint64(max(random.shape[-1] - 1, 1).bit_length())
    words = (random >> width << width) | np.arange(random.shape[-1], dtype=np.uint64)
    words.sort(axis=-1)
    return (words & ((np.uint64(1) << width) - np.uint64(1))).astype(np.int64)


def distinct(keys: Bits, population: int, count: int) -> Indices:
    """Return `count` distinct numbers below `population` in random order for each key, `[..., count]`."""
    if population <= 4 * count:
        return _order(bits(keys, population))[..., :count]
    # Floyd's sample: its cost does not grow with the population, which may be thousands of classes.
    random = bits(keys, 2 * count)
    chosen = np.empty((*keys.shape, count), dtype=np.int64)
    for position in range(count):
        last = population - count + position
        drawn = ((random[..., position] >> np.uint64(32)) * np.uint64(last + 1) >> np.uint64(32)).astype(np.int64)
        taken = (chosen[..., :position] == drawn[..., None]).any(axis=-1)
        chosen[..., position] = np.where(taken, last, drawn)
    return np.take_along_axis(chosen, _order(random[..., count:]), axis=-1)


class ImageSource(Protocol):
    """Images that are decoded when they are asked for, indexed like an array `[classes, per_class, C, H, W]`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def take(self, classes: Indices, images: Indices) -> Pixels:
        """Return images `[n, C, H, W]` for class and image numbers `[n]`."""
        ...


@dataclass(frozen=True)
class ClassPool:
    """The classes of one split: `images` `[rows, per_class, C, H, W]` uint8, in memory or decoded on demand, and names.

    Class i shows the images of row `rows[i]` (of row i if `rows` is None), turned anticlockwise by `turns[i]` quarters:
    splits and rotated copies share one array of pixels.
    """

    images: Pixels | ImageSource
    names: Sequence[str]
    rows: Indices | None = None
    turns: Indices | None = None

    def __post_init__(self) -> None:
        where = "class pool"
        if len(self.images.shape) != 5:
            raise DataError(f"images have shape {self.images.shape}", where=where, remedy="give [rows, n, C, H, W]")
        if isinstance(self.images, np.ndarray) and self.images.dtype != np.uint8:
            raise DataError(f"images are {self.images.dtype}", where=where, remedy="give uint8 images")
        classes = self.images.shape[0] if self.rows is None else len(self.rows)
        if len(self.names) != classes or (self.turns is not None and len(self.turns) != classes):
            raise DataError(
                f"{classes} classes do not match {len(self.names)} names or the number of turns",
                where=where,
                remedy="give one name, one row and one turn for each class",
            )
        if self.turns is not None and (self.turns % 2).any() and self.images.shape[-1] != self.images.shape[-2]:
            raise DataError("images that are not square cannot be turned", where=where, remedy="resize them")

    @property
    def per_class(self) -> int:
        """Return the number of images of each class."""
        return int(self.images.shape[1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return `(C, H, W)`."""
        channels, height, width = self.images.shape[2:]
        return int(channels), int(height), int(width)

    def take(self, classes: Indices, images: Indices) -> Pixels:
        """Return images `[n, C, H, W]` for class and image numbers `[n]`, turned as their classes are."""
        rows = classes if self.rows is None else self.rows[classes]
        if isinstance(self.images, np.ndarray):
            table = self.images.reshape(-1, int(np.prod(self.image_shape)))
            taken = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
            # Without "clip" numpy gathers into a buffer first; the numbers are in range by construction.
            np.take(table, rows * self.per_class + images, axis=0, out=taken.reshape(len(rows), -1), mode="clip")
        else:
            taken = self.images.take(rows, images)
        if self.turns is not None:
            _turn(taken, self.turns[classes])
        return taken


def _turn(images: Pixels, turns: Indices) -> None:
    """Turn each of `images` `[n, C, H, W]` in place by its number of quarters `turns` `[n]`."""
    for quarters in (1, 2, 3):
        which = np.flatnonzero(turns % 4 == quarters)
        if len(which):
            images[which] = np.rot90(images[which], quarters, axes=(-2, -1))


def check_split(split: str, splits: Sequence[str], where: str) -> None:
    """Raise `ConfigError`, with the nearest name, if a data set has no such split."""
    if split not in splits:
        raise ConfigError(
            f"there is no split {split!r}.{nearest(split, splits)}",
            where=where,
            remedy=f"use one of {', '.join(splits)}",
        )


def feasible(pool: ClassPool, shape: TaskShape) -> None:
    """Raise `ConfigError` if a shape is no classification task, `DataError` if the pool is too small for it."""
    for name, value, least in zip(shape._fields, shape, (2, 1, 1), strict=True):
        if value < least:
            raise ConfigError(
                f"{name} = {value} is no classification task",
                where="task shape",
                remedy=f"set {name} to {least} or more",
            )
    classes, images = len(pool.names), pool.per_class
    needed = shape.shots + shape.queries
    if shape.ways <= classes and needed <= images:
        return
    found = f"the split has {classes} classes of {images} images each"
    if classes < 2 or images < 2:
        raise DataError(found, where="task shape", remedy="use a split of at least 2 classes of 2 images each")
    ways, shots = min(shape.ways, classes), min(shape.shots, images - 1)
    raise DataError(
        f"tasks of {shape.ways} classes with {shape.shots} + {shape.queries} images each were asked for; {found}",
        where="task shape",
        remedy=f"use at most {classes} ways, and shots + queries of at most {images}; the largest setting near yours: "
        f"ways = {ways}, shots = {shots}, queries = {min(shape.queries, images - shots)}",
    )


def sample_episodes(pool: ClassPool, shape: TaskShape, first: int, count: int, *, seed: int, split: str) -> Task:
    """Return episodes `first … first + count - 1` as one task: x `[count, n, C, H, W]` uint8, y `[count, n]` int64.

    Classes, their labels, the images of each and the order of the examples are drawn afresh for every episode.
    Raises `DataError` if the pool is too small for the shape.
    """
    feasible(pool, shape)
    keys = bits(episode_keys(seed, split, first, count), 4)
    # The random order in which the classes are drawn is the map from class to label.
    classes = distinct(keys[:, 0], len(pool.names), shape.ways)
    images = distinct(bits(keys[:, 1], shape.ways), pool.per_class, shape.shots + shape.queries)
    return Task(
        support=_examples(pool, classes, images[..., : shape.shots], keys[:, 2]),
        query=_examples(pool, classes, images[..., shape.shots :], keys[:, 3]),
    )


def _examples(pool: ClassPool, classes: Indices, images: Indices, keys: Bits) -> Examples:
    """Return the images `[count, ways, n]` of classes `[count, ways]` in an order that tells nothing of the labels."""
    count, ways, each = images.shape
    order = _order(bits(keys, ways * each))
    label = order // each
    chosen = np.take_along_axis(classes, label, axis=1)
    image = np.take_along_axis(images.reshape(count, ways * each), order, axis=1)
    x = pool.take(chosen.reshape(-1), image.reshape(-1)).reshape(count, ways * each, *pool.image_shape)
    return Examples(x=_tensor(x), y=_tensor(label))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
