"""Helpers for the `vmap` rules of autograd functions: merge the task dimension into another one, and split it again.

So a batch of tasks becomes one larger input, and one call of the function computes all tasks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


def apply_function(function: type[Function], *arguments: Any) -> Any:
    """Return `function.apply(*arguments)`, which has no type annotations in torch."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def merge_tasks(x: Tensor, task_dim: int | None, into: int, tasks: int) -> Tensor:
    """Return `x` with its task dimension merged into another dimension, in which it varies slowest.

    Args:
        x: The batched tensor, or one that all tasks share.
        task_dim: The task dimension of `x`; None if all tasks share `x`, which is then repeated for each task.
        into: The dimension of one task's tensor that the task dimension is merged into.
        tasks: The number of tasks.
    """
    batched = x.expand(tasks, *x.shape) if task_dim is None else x.movedim(task_dim, 0)
    return batched.movedim(0, into).flatten(into, into + 1)


def split_tasks(x: Tensor, dim: int, tasks: int) -> Tensor:
    """Return `x` with dimension `dim` split into the task dimension, at `dim`, and the rest; undoes `merge_tasks`."""
    batched: Tensor = x.unflatten(dim, (tasks, -1))  # type: ignore[no-untyped-call]
    return batched
