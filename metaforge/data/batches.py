"""Batches of episodes: tasks of one shape together, as the data set returned them and checked against their spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from metaforge.authoring.protocols import Dataset, Task, TaskShape, TaskSpec
from metaforge.data.checks import expected_task, expected_tasks
from metaforge.data.varied import EpisodeBounds, compose


class TaskBatch(NamedTuple):
    """Episodes of one shape.

    Attributes:
        episodes: Their numbers, ascending.
        spec: Their specification.
        tasks: The tasks `[episodes, ...]`, as the data set returns them.
    """

    episodes: Sequence[int]
    spec: TaskSpec
    tasks: Task


def episode_batches(
    dataset: Dataset,
    split: str,
    spec: TaskSpec,
    bounds: EpisodeBounds | None,
    episodes: range,
    *,
    seed: int,
    numbers: Sequence[int] | None = None,
) -> list[TaskBatch]:
    """Return consecutive episodes, those of equal shape together.

    Args:
        dataset: The data set.
        split: Name of the split.
        spec: The specification of the tasks; of varied tasks, that of any of them.
        bounds: The bounds of varied tasks; None for tasks of the shape of `spec`.
        episodes: The numbers of the episodes, not empty.
        seed: Seed of the episodes.
        numbers: The numbers of the tasks that the data set samples for the episodes, if they are not those of the
            episodes, as in a stream, where a task comes again. The tasks then have the shape of `spec`.

    Returns:
        The batches, ordered by their first episodes.

    Raises:
        PluginError: The data set returns other tasks than its spec promises.
    """
    if numbers is not None:
        each = [dataset.sample(split, spec.shape, number, 1, seed=seed) for number in numbers]
        checked = [expected_tasks(dataset, task, spec, 1) for task in each]
        joined: Task = tree_map(lambda *leaves: torch.cat(leaves), *checked)
        return [TaskBatch(episodes, spec, joined)]
    if bounds is None:
        sampled = dataset.sample(split, spec.shape, episodes[0], len(episodes), seed=seed)
        return [TaskBatch(episodes, spec, expected_tasks(dataset, sampled, spec, len(episodes)))]
    sizes = dataset.class_sizes(split)
    by_shape: dict[tuple[int, int, int], list[tuple[int, Task]]] = {}
    for number in episodes:
        parts = compose(sizes, bounds, number, seed=seed, split=split)
        task = expected_task(dataset, dataset.draw(split, *parts, number, seed=seed), spec, parts)
        shape = (len(parts.classes), sum(parts.shots), parts.queries)
        by_shape.setdefault(shape, []).append((number, task))
    batches = []
    for (ways, _, _), pairs in by_shape.items():
        own, tasks_of_shape = zip(*pairs, strict=True)
        tasks = tree_map(lambda *leaves: torch.stack(leaves), *tasks_of_shape)
        batches.append(TaskBatch(own, replace(spec, outputs=ways, shape=TaskShape(ways, 0, 0)), tasks))
    return batches


def examples_of(batch: TaskBatch) -> int:
    """Return the number of support and query examples of each task of a batch."""
    return int(batch.tasks.support.x.shape[1] + batch.tasks.query.x.shape[1])
