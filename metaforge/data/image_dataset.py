"""The base class of data sets whose classes are in class pools."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from metaforge.authoring.kinds import CLASSIFICATION, TaskKind
from metaforge.authoring.protocols import Dataset, Task, TaskShape, TaskSpec
from metaforge.data.class_pool import ClassPool, check_shape
from metaforge.data.episodes import draw_episode, sample_episodes


class ImageDataset(Dataset):
    """Base class of data sets of images: a subclass defines `pool` and `facts`.

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
