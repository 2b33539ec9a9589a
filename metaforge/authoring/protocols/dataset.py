"""The protocol of data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.types import Kind, Task, TaskShape, TaskSpec


class Dataset(Component, Protocol):
    """Returns few-shot tasks by their number.

    An episode is a pure function of (seed, split, number): it is the same for every learner, batch size and process.

    Args:
        config: The data set's validated options, an instance of its `Config`.
        root: The folder that contains the data sets' folders. Read files at the first use and not in `__init__`.

    Attributes:
        kind: The kind of the tasks, a `TaskKind`; the name of a built-in kind stands for it.
        note: A remark that is printed beside every result, for example that the data are synthetic.

    Example:
        >>> import torch
        >>> from metaforge.authoring import (
        ...     Dataset, Examples, Options, Task, TaskShape, TaskSpec, fold_in, make_key, normal, uniform
        ... )
        >>> class Lines(Dataset):
        ...     "Lines through the origin; each task has its own slope."
        ...     Config, kind = Options, "regression"
        ...     def __init__(self, config, *, root):
        ...         self.config = config
        ...     def spec(self, split, shape):
        ...         return TaskSpec("regression", x_shape=(1,), outputs=1, shape=shape)
        ...     def sample(self, split, shape, first, count, *, seed):
        ...         def task(key):
        ...             slope = normal(fold_in(key, "slope"), (1,))
        ...             def examples(role, n):
        ...                 x = uniform(fold_in(key, role), (n, 1))
        ...                 return Examples(x, slope * x)
        ...             return Task(examples("support", shape.shots), examples("query", shape.queries))
        ...         return torch.func.vmap(task)(torch.stack([make_key(seed, split, first + i) for i in range(count)]))
        ...     def facts(self, split):
        ...         return {"slopes": "standard normal"}
        >>> tasks = Lines(Options(), root=None).sample("train", TaskShape(1, 5, 10), first=0, count=4, seed=0)
        >>> tasks.support.x.shape, tasks.query.y.shape
        (torch.Size([4, 5, 1]), torch.Size([4, 10, 1]))
    """

    kind: ClassVar[Kind]
    note: ClassVar[str] = ""

    def __init__(self, config: Any, *, root: Path) -> None: ...

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> type[Dataset]:
        """Return the class that stands for this one under some options, by default this one.

        It is for a data set whose kind of tasks, or whose `defaults`, depend on an option: both are read from the class
        before there is an instance. An instance that is made with such options must be one of that class.

        Args:
            options: The options that are set, by name. They have not been validated yet.

        Returns:
            This class or a subclass of it, with the same `Config`.
        """
        return cls

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the specification of tasks of a shape.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            shape: Numbers of classes and examples.

        Returns:
            The kind, input shape and number of outputs of these tasks, and the number of training classes if `sample`
            numbers the classes.

        Raises:
            DataError: The split has too few classes or examples; the message has the largest feasible shape.
            ConfigError: There is no such split.
        """
        ...

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return the episodes `first` … `first + count - 1` as one batch of tasks.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            shape: Numbers of classes and examples.
            first: Number of the first episode, from 0.
            count: Number of episodes.
            seed: Seed of the episodes.

        Returns:
            A batch of tasks: support inputs `[count, ways * shots, *x_shape]` and query inputs
            `[count, ways * queries, *x_shape]`, with targets `[count, n]` or `[count, n, outputs]`, and the numbers of
            the classes `[count, ways]` if the data set numbers them. Images can be uint8: the engine converts them to
            floating point in [0, 1].
        """
        ...

    def class_sizes(self, split: str) -> Sequence[int]:
        """Return the number of examples of each class of a split, by the number of the class.

        With `draw`, this is what a data set needs for tasks whose numbers of classes and examples vary.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            Numbers of examples `[classes]`; by default there are none, and `draw` is never called.
        """
        return ()

    def draw(
        self, split: str, classes: Sequence[int], shots: Sequence[int], queries: int, number: int, *, seed: int
    ) -> Task:
        """Return one task of given classes, each with its own number of support examples.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            classes: The numbers of the task's classes `[ways]`, distinct; the class `classes[i]` has the label i.
            shots: Number of support examples of each class `[ways]`.
            queries: Number of query examples per class.
            number: Number of the episode, from 0.
            seed: Seed of the episodes.

        Returns:
            A task without a task dimension: support inputs `[sum(shots), *x_shape]`, query inputs
            `[ways * queries, *x_shape]`, and `classes`. It depends on the arguments only.

        Raises:
            DataError: There is no class of a number, or it has too few examples.
        """
        raise NotImplementedError(f"{type(self).__name__} has class_sizes but no draw")

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return facts about a split for the user, such as the numbers of classes and images.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            Numbers and strings by name.
        """
        ...

    def class_names(self, split: str) -> Sequence[str]:
        """Return the names of a split's classes; by default none are known.

        A run records them, so that they can be read where the data set is missing.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            The names in the order of the classes' numbers, or an empty sequence.
        """
        return ()

    def grid(self, split: str) -> tuple[int, ...]:
        """Return the shape of the grid whose places are the inputs of a split's examples; by default there is none.

        Tasks of regression on a grid with two dimensions are drawn as images.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            The size of each dimension, such as the height and width of images whose pixels are the examples. An input
            then has a number for each dimension, from -1 at the first place to 1 at the last. `()` for no grid.
        """
        return ()

    def measure(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Mapping[str, list[float]]:
        """Return metrics of some test episodes that no learner changes, such as what a perfect learner would reach.

        They are shown beside the learner's own metrics (`Learner.measure`), which must have other names.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            shape: Numbers of classes and examples.
            first: Number of the first episode, from 0.
            count: Number of episodes.
            seed: Seed of the episodes.

        Returns:
            A number for each episode `[count]`, by the name of the metric; `{}` by default.
        """
        return {}
