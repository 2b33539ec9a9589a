"""The classes of one split with their images, and checks of splits and task shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metaforge.authoring.protocols import TaskShape
from metaforge.data.random_numbers import Bits, Indices
from metaforge.errors import ConfigError, DataError, nearest, shown

Pixels = NDArray[np.uint8]
"""Images with values 0 to 255, channels first."""
Features = NDArray[np.float32]
"""Features of images, each a channel of one element."""


class ImageSource(Protocol):
    """Images that are decoded on access, indexed like an array `[classes, per_class, C, H, W]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(classes, per_class, C, H, W)`."""
        ...

    def take(self, classes: Indices, images: Indices) -> Pixels:
        """Return images `[n, C, H, W]` for class and image numbers `[n]`."""
        ...


@dataclass(frozen=True)
class ClassPool:
    """The classes of one split with their images.

    Several splits and rotated copies of classes can share one array of images. The number of a class is its position.

    Args:
        images: uint8 images `[rows, per_class, C, H, W]`: an array, or an object with the same `shape` and a method
            `take(rows, images)` that decodes images on access, such as `TreeImages`. An array can also be float32, such
            as features of images `[rows, per_class, features, 1, 1]`.
        names: Names of the classes.
        rows: The row of `images` that each class has, `[classes]`; by default class i has row i.
        turns: By how many quarter turns, anticlockwise, the images of each class are rotated, `[classes]`; by default
            none are. Only square images can be rotated.
        sizes: The number of images of each class, `[classes]`: the first ones of its row, and the others are never
            drawn. By default each class has all `per_class` images.
        rotate: Whether each class of a task is rotated by 0 to 3 quarter turns, which are drawn for the task, and are
            the same for its support and query examples.
        augment: Changes the images of a task: a function of images `[n, C, H, W]` and a random key for each `[n]`, such
            as `jitter` with its options, that returns images of the same shape and dtype.

    Raises:
        DataError: Shape or dtype of the images is wrong, the numbers of classes, names, turns and sizes differ, or a
            size is not 1 to `per_class`.

    Example:
        >>> import numpy as np
        >>> from metaforge.data import ClassPool
        >>> images = np.zeros((3, 20, 1, 28, 28), dtype=np.uint8)
        >>> pool = ClassPool(images, ["a", "b", "c"])
        >>> pool.per_class, pool.image_shape
        (20, (1, 28, 28))
        >>> ClassPool(images, ["a", "b", "c"], sizes=np.array([20, 5, 9])).class_sizes
        array([20,  5,  9])
    """

    images: Pixels | Features | ImageSource
    names: Sequence[str]
    rows: Indices | None = None
    turns: Indices | None = None
    sizes: Indices | None = None
    rotate: bool = False
    augment: Callable[[Any, Bits], Pixels] | None = None

    def __post_init__(self) -> None:
        where = "class pool"
        if len(self.images.shape) != 5:
            raise DataError(
                f"images have the shape {list(self.images.shape)}",
                where=where,
                remedy="the shape must be [rows, per_class, C, H, W]",
            )
        if isinstance(self.images, np.ndarray) and self.images.dtype not in (np.uint8, np.float32):
            raise DataError(f"images are {self.images.dtype}", where=where, remedy="convert them to uint8 or float32")
        classes = self.images.shape[0] if self.rows is None else len(self.rows)
        others = [len(array) for array in (self.turns, self.sizes) if array is not None]
        if {len(self.names), *others} != {classes}:
            raise DataError(
                f"{classes} classes do not match {len(self.names)} names or the number of turns or sizes",
                where=where,
                remedy="each class needs one name and, if they are given, one row, one turn and one size",
            )
        if self.sizes is not None and not ((self.sizes >= 1) & (self.sizes <= self.per_class)).all():
            raise DataError(
                f"the sizes of classes are {self.sizes.min()} to {self.sizes.max()}",
                where=where,
                remedy=f"each class has 1 to {self.per_class} images, as many as a row of the images has",
            )
        turned = self.rotate or (self.turns is not None and bool((self.turns % 2).any()))
        if turned and self.images.shape[-1] != self.images.shape[-2]:
            raise DataError("only square images can be rotated by 90 degrees", where=where, remedy="resize them")

    @property
    def per_class(self) -> int:
        """Return the largest number of images that a class can have."""
        return int(self.images.shape[1])

    @property
    def class_sizes(self) -> Indices:
        """Return the number of images of each class `[classes]`."""
        return np.full(len(self.names), self.per_class, dtype=np.int64) if self.sizes is None else self.sizes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return `(C, H, W)`."""
        channels, height, width = self.images.shape[2:]
        return int(channels), int(height), int(width)

    def draw(self, classes: Indices, images: Indices, turns: Indices | None, keys: Bits) -> Pixels | Features:
        """Return the images of a task: as `take`, but augmented, with a key for each image `[n]`."""
        taken = self.take(classes, images, turns)
        return taken if self.augment is None else self.augment(taken, keys)

    def take(self, classes: Indices, images: Indices, turns: Indices | None = None) -> Pixels | Features:
        """Return images `[n, C, H, W]` for class and image numbers `[n]`, rotated as their classes are.

        `turns` `[n]` are quarter turns by which the images are rotated in addition, such as those of a task.
        """
        rows = classes if self.rows is None else self.rows[classes]
        if isinstance(self.images, np.ndarray):
            table = self.images.reshape(-1, int(np.prod(self.image_shape)))
            taken: Pixels | Features = np.empty((len(rows), *self.image_shape), dtype=self.images.dtype)
            # With any other mode NumPy would gather into a buffer first. The indices are in range, so none is clipped.
            np.take(table, rows * self.per_class + images, axis=0, out=taken.reshape(len(rows), -1), mode="clip")
        else:
            taken = self.images.take(rows, images)
        if self.turns is not None:
            turns = self.turns[classes] if turns is None else turns + self.turns[classes]
        if turns is not None:
            _rotate(taken, turns)
        return taken


def _rotate(images: Pixels | Features, turns: Indices) -> None:
    """Rotate images `[n, C, H, W]` in place by `turns` `[n]` quarter turns."""
    for quarters in (1, 2, 3):
        which = np.flatnonzero(turns % 4 == quarters)
        if len(which):
            images[which] = np.rot90(images[which], quarters, axes=(-2, -1))


def check_split(split: str, splits: Sequence[str], where: str) -> None:
    """Raise `ConfigError`, with the most similar name, if a data set does not have a split.

    Args:
        split: The name to check.
        splits: The names of the splits that the data set has.
        where: What the message names as the source, usually the data set.

    Raises:
        ConfigError: `split` is not in `splits`.

    Example:
        >>> from metaforge.data import check_split
        >>> check_split("trian", ("train", "test"), "my-data")
        Traceback (most recent call last):
        ...
        metaforge.errors.ConfigError: there is no split 'trian'. Did you mean 'train'?
          where: my-data
          remedy: use one of train, test
    """
    if split not in splits:
        raise ConfigError(
            f"there is no split {split!r}.{nearest(split, splits)}",
            where=where,
            remedy=f"use one of {', '.join(splits)}",
        )


def check_shape(pool: ClassPool, shape: TaskShape) -> None:
    """Raise an error if tasks of a shape cannot be sampled from a pool.

    Args:
        pool: The classes to sample from.
        shape: Ways, shots and queries of a task.

    Raises:
        ConfigError: A classification task cannot have this shape: it needs at least 2 ways, 1 shot and 1 query.
        DataError: The pool has too few classes with as many images as a task takes of each. The message names the
            largest shape near the one requested.

    Example:
        >>> import numpy as np
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge.data import ClassPool, check_shape
        >>> pool = ClassPool(np.zeros((5, 20, 1, 8, 8), dtype=np.uint8), list("abcde"))
        >>> check_shape(pool, TaskShape(ways=5, shots=1, queries=15))
        >>> check_shape(pool, TaskShape(ways=6, shots=1, queries=15))  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ...
        metaforge.errors.DataError: tasks of 6 classes with 1 + 15 images each were requested; the split has 5 classes
    """
    for name, value, least in zip(shape._fields, shape, (2, 1, 1), strict=True):
        if value < least:
            raise ConfigError(
                f"a classification task cannot have {name} = {value}",
                where="task shape",
                remedy=f"set {name} to {least} or more",
            )
    classes, sizes = len(pool.names), np.sort(pool.class_sizes)
    needed = shape.shots + shape.queries
    if shape.ways <= (sizes >= needed).sum():
        return
    # As many images as each of the largest `ways` classes has.
    images = int(sizes[-min(max(shape.ways, 2), classes)]) if classes else 0
    available = f"the split has {classes} classes of {images} images each"
    if len({*sizes.tolist()}) > 1:
        available = (
            f"the split has {classes} classes of {sizes[0]} to {sizes[-1]} images, {(sizes >= needed).sum()} of them"
            f" with {needed} or more"
        )
    if classes < 2 or images < 2:
        raise DataError(available, where="task shape", remedy="use a split of at least 2 classes of 2 images each")
    ways, shots = min(shape.ways, classes), min(shape.shots, images - 1)
    raise DataError(
        f"tasks of {shape.ways} classes with {shape.shots} + {shape.queries} images each were requested; {available}",
        where="task shape",
        remedy=f"use at most {classes} ways, and shots + queries of at most {images}; the largest task near this one: "
        f"ways = {ways}, shots = {shots}, queries = {min(shape.queries, images - shots)}",
    )


def check_draw(pool: ClassPool, classes: Sequence[int], shots: Sequence[int], queries: int) -> None:
    """Raise an error if a task of given classes and numbers of examples cannot be drawn from a pool.

    Args:
        pool: The classes to draw from.
        classes: The numbers of the task's classes `[ways]`.
        shots: Number of support examples of each class `[ways]`.
        queries: Number of query examples per class.

    Raises:
        ConfigError: There are fewer than 2 classes, 1 shot or 1 query, or a class is named twice.
        DataError: There is no class of a number, or it has too few images.
    """
    if len({*classes}) != len(shots) or len(classes) < 2 or min(*shots, queries) < 1:
        raise ConfigError(
            f"a task cannot have the classes {shown(list(classes))} with {shown(list(shots))} shots and {queries}"
            " queries",
            where="task shape",
            remedy="name 2 or more classes, each once, with 1 or more shots of each and 1 or more queries",
        )
    for number, count in zip(classes, shots, strict=True):
        if not 0 <= number < len(pool.names):
            raise DataError(
                f"there is no class {number}",
                where="task shape",
                remedy=f"the split has the classes 0 to {len(pool.names) - 1}",
            )
        if count + queries > pool.class_sizes[number]:
            raise DataError(
                f"{count} + {queries} images of class {number} were requested; it has {pool.class_sizes[number]}",
                where="task shape",
                remedy=f"use shots + queries of at most {pool.class_sizes[number]}",
            )
