"""The tasks of a batch by their shape, cut into chunks: only tasks of one shape can be computed together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from metaforge.authoring.protocols import Examples, Learner, Task
from metaforge.engine.chunks import ChunkGradients, ChunkResult
from metaforge.engine.contract import require_same_metrics
from metaforge.engine.plans import Plan


class ShapedTasks(NamedTuple):
    """The tasks of one shape in the local batch, and how to compute them.

    Attributes:
        learner: The learner, built for tasks of this shape.
        tasks: The tasks; every tensor has a leading task dimension, `[tasks, ...]`.
        keys: One key per task, `[tasks]`.
        positions: The position of each task in the local batch, ascending.
        chunk: Compute at most this many tasks together; None for all. `loop` computes one at a time in any case.
        compiled: `Compiler(gradients_to_compile(learner, plan, ...))`; None computes eagerly.
    """

    learner: Learner
    tasks: Task
    keys: Tensor
    positions: Sequence[int]
    chunk: int | None = None
    compiled: ChunkGradients | None = None


class Chunk(NamedTuple):
    """Some tasks of one shape `[tasks, ...]` with their keys `[tasks]` and positions in the local batch.

    `group` is the index of the local group that they belong to, and `shaped` is what they are part of.
    """

    group: int
    shaped: ShapedTasks
    tasks: Task
    keys: Tensor
    positions: Sequence[int]


def chunks(batch: Sequence[ShapedTasks], groups: Sequence[int], plan: Plan) -> Iterator[Chunk]:
    """Yield the chunks of each group of the local batch in order: within a group, one shape after the other.

    Args:
        batch: The tasks of the local batch, by shape.
        groups: The number of tasks of each group; the groups are consecutive.
        plan: How a chunk is computed.
    """
    ends = [*accumulate(groups)]
    for group, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        for shaped in batch:
            first, last = (bisect_left(shaped.positions, position) for position in (begin, end))
            size = 1 if plan == "loop" else shaped.chunk or max(last - first, 1)
            for start in range(first, last, size):
                part = slice(start, min(start + size, last))
                yield Chunk(group, shaped, _rows(shaped.tasks, part), shaped.keys[part], shaped.positions[part])


def _rows(tasks: Task, part: slice) -> Task:
    """Return some tasks of a batch. Not by `tree_map`, which takes longer than the slices themselves."""
    support, query = (Examples(examples.x[part], examples.y[part]) for examples in (tasks.support, tasks.query))
    return Task(support, query, tasks.classes[part] if isinstance(tasks.classes, Tensor) else ())


# The result of a chunk, and the positions of its tasks in the local batch.
Result = tuple[ChunkResult, Sequence[int]]


def rows_of(results: Sequence[Result]) -> tuple[Tensor, list[str], list[str]]:
    """Return loss, metrics and terms of each task `[tasks, n]` in the order of the tasks, and the names of the latter.

    The metrics are sorted by name, because a learner may return those of another shape in another order.

    Raises:
        ContractError: Tasks of two shapes have metrics of different names.
    """
    losses = torch.cat([result.losses for result, _ in results])
    metrics, terms = sorted(results[0][0].metrics), [*results[0][0].terms]
    if len(results) > 1:
        require_same_metrics(result.metrics for result, _ in results)
    columns = [torch.cat([result.metrics[name] for result, _ in results]) for name in metrics]
    columns += [torch.cat([result.terms[name] for result, _ in results]) for name in terms]
    rows = torch.stack([losses, *(column.to(losses.dtype) for column in columns)], 1)
    positions = [position for _, part in results for position in part]
    if positions != [*range(len(positions))]:
        rows = rows[torch.tensor(positions, device=rows.device).argsort()]
    return rows, metrics, terms
