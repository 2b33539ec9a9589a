"""The base class of data sets whose classes are in class pools."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field

from metaforge.authoring.kinds import CLASSIFICATION, REGRESSION, TaskKind
from metaforge.authoring.protocols import Dataset, Options, Task, TaskShape, TaskSpec
from metaforge.data.class_pool import ClassPool, check_shape
from metaforge.data.completion import check_pixels, sample_completions
from metaforge.data.episodes import draw_episode, sample_episodes

# The shape of suggested completion tasks.
COMPLETION = TaskShape(ways=1, shots=100, queries=100)


class ImageOptions(Options):
    """Options of every data set of images.

    Example:
        >>> from metaforge.data import ImageOptions
        >>> ImageOptions(task="completion").task
        'completion'
    """

    after_colon: ClassVar[str] = "task"

    task: Literal["classification", "completion"] = Field(
        default="classification",
        description="classification: examples are images of the task's classes; completion: a task is one image, and "
        "its examples are pixels, from the place of a pixel to its value",
    )


class ImageDataset(Dataset):
    """Base class of data sets of images: a subclass defines `pool` and `facts`.

    With options that inherit from `ImageOptions`, it also has image completion tasks, which are regression tasks.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from metaforge.authoring import Options, TaskShape
        >>> from metaforge.data import ClassPool, ImageDataset
        >>> class Grey(ImageDataset):
        ...     "Plain images; a class is a shade of grey."
        ...     Config = Options
        ...     def __init__(self, config, *, root):
        ...         self.config = config
        ...     def pool(self, split):
        ...         shades = np.arange(256, dtype=np.uint8)[{"train": 0, "val": 1, "test": 2}[split] :: 3]
        ...         images = np.broadcast_to(shades[:, None, None, None, None], (len(shades), 20, 1, 8, 8)).copy()
        ...         return ClassPool(images, [str(shade) for shade in shades])
        ...     def facts(self, split):
        ...         return {"classes": len(self.pool(split).names)}
        >>> data = Grey(Options(), root=Path())
        >>> data.spec("test", TaskShape(ways=5, shots=1, queries=15)).classes
        86
        >>> data.sample("test", TaskShape(ways=5, shots=1, queries=15), 0, 4, seed=0).classes.shape
        torch.Size([4, 5])
    """

    kind: ClassVar[TaskKind] = CLASSIFICATION

    def __new__(cls, config: Any = None, *, root: Path | None = None) -> Self:
        """Return an instance of the class that has the tasks which the options choose."""
        return cast(Self, super().__new__(cls.variant({"task": getattr(config, "task", "classification")})))

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> type[Dataset]:
        """Return the class that has the tasks which the option `task` chooses: this class, or one of completion."""
        return _completion(cls) if options.get("task") == "completion" else cls

    @abstractmethod
    def pool(self, split: str) -> ClassPool:
        """Return the classes of a split with their images.

        Keep the pools that were made: all methods call this one.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            The pool of the split.

        Raises:
            ConfigError: There is no such split (see `check_split`).
            DataError: The images are missing or damaged.
        """

    def training_classes(self) -> int:
        """Return the number of classes of the training split, for the spec of every split.

        Define it where that number is known without the images of the training split.
        """
        return len(self.pool("train").names)

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks of `[C, H, W]` images; raise `DataError` if the split is too small."""
        pool = self.pool(split)
        check_shape(pool, shape)
        return TaskSpec(self.kind, pool.image_shape, shape.ways, shape, self.training_classes())

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task: x `[count, n, C, H, W]` uint8, y `[count, n]` int64 and classes `[count, ways]`."""
        return sample_episodes(self.pool(split), shape, first, count, seed=seed, split=split)

    def class_names(self, split: str) -> Sequence[str]:
        """Return the names of the classes of a split, in the order of their numbers."""
        return self.pool(split).names

    def class_sizes(self, split: str) -> Sequence[int]:
        """Return the number of images of each class of a split."""
        sizes: list[int] = self.pool(split).class_sizes.tolist()
        return sizes

    def draw(
        self, split: str, classes: Sequence[int], shots: Sequence[int], queries: int, number: int, *, seed: int
    ) -> Task:
        """Return one task of given classes, each with its own number of shots."""
        return draw_episode(self.pool(split), classes, shots, queries, number, seed=seed, split=split)


class _Completion(ImageDataset):
    """The part of a data set of image completion tasks in which it differs from that of its images."""

    kind: ClassVar[TaskKind] = REGRESSION

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks from x `[n, 2]` to y `[n, C]`; raise `DataError` if an image has too few pixels."""
        pool = self.pool(split)
        check_pixels(pool, shape)
        return TaskSpec(REGRESSION, (2,), pool.image_shape[0], shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task of float32: support x `[count, shots, 2]`, y `[count, shots, C]`, and the queries."""
        return sample_completions(self.pool(split), shape, first, count, seed=seed, split=split)

    def grid(self, split: str) -> tuple[int, ...]:
        """Return height and width of the images."""
        return self.pool(split).image_shape[1:]

    def class_names(self, split: str) -> Sequence[str]:
        """Return no names: the tasks have no classes."""
        return ()

    def class_sizes(self, split: str) -> Sequence[int]:
        """Return no sizes: the tasks have no classes."""
        return ()


@cache
def _completion(images: type[ImageDataset]) -> type[ImageDataset]:
    """Return the data set of completion tasks of the images of a data set, named as that is in messages."""
    if issubclass(images, _Completion):
        return images
    suited = {REGRESSION.name: {"task": COMPLETION._asdict()} | dict(images.defaults.get(REGRESSION.name, {}))}
    named = {name: getattr(images, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(images.__name__, (_Completion, images), {"defaults": suited, **named})
