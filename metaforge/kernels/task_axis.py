"""Many tasks as one: an axis of tasks made the outer part of another axis."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


def applied(function: type[Function], *arguments: Any) -> Any:
    """Return what a function with a derivative of its own returns."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def folded(x: Tensor, at: int | None, into: int, tasks: int) -> Tensor:
    """Return `x` with its axis of tasks `at` made part of the axis `into` of one task; the same for each if None."""
    apart = x.expand(tasks, *x.shape) if at is None else x.movedim(at, 0)
    return apart.movedim(0, into).flatten(into, into + 1)


def unfolded(x: Tensor, at: int, tasks: int) -> Tensor:
    """Return `x` with the axis of tasks, `at`, taken out again."""
    found: Tensor = x.unflatten(at, (tasks, -1))  # type: ignore[no-untyped-call]
    return found
