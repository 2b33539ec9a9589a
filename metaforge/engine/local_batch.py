"""Which tasks of a batch one process computes, and how the results of all processes are reduced."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metaforge.authoring.functional import add_params
from metaforge.authoring.protocols import Params

# Maps (sums of each local group, rows of the local tasks `[local, n]`) to (sums over the groups of all ranks, rows of
# all tasks `[total, n]`). The sums are gradients and state changes by name; a row has the loss and metrics of a task.
Reduce = Callable[[list[Params], Tensor], tuple[Params, Tensor]]


def sum_groups(groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
    """Return the sum over the groups, in order, and the unchanged rows: the reduction of a single process."""
    return functools.reduce(add_params, groups), rows


@dataclass(frozen=True)
class LocalBatch:
    """The tasks of a batch that this rank computes, and the reduction over all ranks.

    Attributes:
        total: The number of tasks in the whole batch.
        groups: The number of tasks in each local group. Gradients are summed within a group first, then over all
            groups. If `reduce` adds the groups in order, the bits of the sums do not depend on the number of ranks.
        first: The index of the first local task in the whole batch; the local tasks are consecutive.
        reduce: The reduction over the groups of all ranks.
    """

    total: int
    groups: tuple[int, ...]
    first: int = 0
    reduce: Reduce = sum_groups
