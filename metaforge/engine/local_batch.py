"""Which tasks of a batch one process computes, and how the results of all processes are reduced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from metaforge.authoring.functional import add_params
from metaforge.authoring.protocols import Params

# Maps (sums of each local group, rows of the local tasks `[local, n]`) to (sums over the groups of all ranks, rows of
# all tasks `[total, n]`). The sums are gradients and state changes by name; a row has the loss and metrics of a task.
Reduce = Callable[[list[Params], Tensor], tuple[Params, Tensor]]


def sum_groups(groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
    """Return the sum over the groups, in order, and the unchanged rows: the reduction of a single process."""
    return functools.reduce(add_params, groups), rows


def reduce_groups(
    add: Callable[[Tensor], Tensor], total: int, first: int, groups: list[Params], rows: Tensor
) -> tuple[Params, Tensor]:
    """Return the sums over the groups of all ranks, and the rows of all tasks `[total, n]`.

    The local rows, padded with zeros to the rows of all tasks, are appended to the first local group. So one collective
    reduces both, and the sum over all groups contains the rows of every task.

    Args:
        add: The collective, which maps local groups `[groups, n]` to the sum over the groups of all ranks `[n]`.
        total: The number of tasks in the whole batch.
        first: The index of the first local task.
        groups: The sums of each local group. All groups of all ranks have the same names, in the same order.
        rows: Losses and metrics of the local tasks `[local, n]`.
    """
    padded = pad(rows, (0, 0, first, total - first - len(rows)))
    parts = [
        [*(group[name] for name in groups[0]), padded if index == 0 else torch.zeros_like(padded)]
        for index, group in enumerate(groups)
    ]
    *sums, rows = _sum_by_dtype(add, parts)
    return dict(zip(groups[0], sums, strict=True)), rows


def _sum_by_dtype(add: Callable[[Tensor], Tensor], groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the sum of each tensor over the groups of all ranks.

    There is one collective per dtype, so that every sum is rounded as in a single process.
    """
    sums: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in groups[0]):
        alike = [index for index, tensor in enumerate(groups[0]) if tensor.dtype == dtype]
        flat = torch.stack([torch.cat([group[index].detach().reshape(-1) for index in alike]) for group in groups])
        pieces = torch.split(add(flat), [groups[0][index].numel() for index in alike])
        sums |= {index: piece.view(groups[0][index].shape) for index, piece in zip(alike, pieces, strict=True)}
    return [sums[index] for index in range(len(groups[0]))]


@dataclass(frozen=True)
class LocalBatch:
    """The tasks of a batch that this rank computes, and the reduction over all ranks.

    Attributes:
        total: The number of tasks in the whole batch.
        groups: The number of tasks in each local group. Gradients are summed within a group first, then over all
            groups. If `reduce` adds the groups in order, the bits of the sums do not depend on the number of ranks.
        first: The index of the first local task in the whole batch; the local tasks are consecutive.
        reduce: The reduction over the groups of all ranks.
        require_same_metrics: Raises `ContractError` unless all ranks call it with the same sorted names of metrics;
            None if their names cannot differ.
    """

    total: int
    groups: tuple[int, ...]
    first: int = 0
    reduce: Reduce = sum_groups
    require_same_metrics: Callable[[Sequence[str]], None] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether this rank computes all tasks of the batch, as a single process does."""
        return sum(self.groups) == self.total
