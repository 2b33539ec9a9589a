"""What learners are written with: dictionaries of parameters, task losses, chains of adapters and the inner loop.

Everything here is safe under `torch.func` transforms, in either order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from metaforge.authoring.protocols import STATE, Examples, Kind, Params, Task

# Dictionaries of parameters with dotted names.


def prefixed(prefix: str, params: Params) -> Params:
    """Put `prefix.` before every name; `state.` stays in front."""
    return {
        f"{STATE}{prefix}.{name.removeprefix(STATE)}" if name.startswith(STATE) else f"{prefix}.{name}": value
        for name, value in params.items()
    }


def select(values: Params, prefix: str) -> Params:
    """Return the entries below `prefix.`, with the prefix taken off; `state.` stays in front."""
    head, state_head = f"{prefix}.", f"{STATE}{prefix}."
    chosen = {name[len(head) :]: value for name, value in values.items() if name.startswith(head)}
    for name, value in values.items():
        if name.startswith(state_head):
            chosen[STATE + name[len(state_head) :]] = value
    return chosen


def split_state(values: Params) -> tuple[Params, Params]:
    """Return (parameters, state)."""
    state = {name: value for name, value in values.items() if name.startswith(STATE)}
    return {name: value for name, value in values.items() if name not in state}, state


def detach_params(params: Params) -> Params:
    """Return the same tensors, cut from every graph."""
    return {name: value.detach() for name, value in params.items()}


def add_params(params: Params, updates: Params) -> Params:
    """Return `params + updates` name by name; names that only one side has are kept."""
    total = dict(params)
    for name, value in updates.items():
        total[name] = total[name] + value if name in total else value
    return total


def advance_state(values: Params, changes: Params) -> Params:
    """Return the changed entries of `values`, after `changes` were added: what a later pass of the same task sees."""
    return {name: values[name] + change for name, change in changes.items()}


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    first, *rest = terms
    return sum(rest, first)


def one_task(tasks: Task, index: int = 0) -> Task:
    """Return one task of a batch."""
    return Task(*(Examples(part.x[index], part.y[index]) for part in tasks))


# Losses and scores of one task.


def one_hot(y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `[n, classes]`; by comparison, because `F.one_hot` fails under nested transforms."""
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Return numbers that a product has rounded as float32, any others as they are: sums need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` `[n, classes]` and labels `[n]`."""
    logits = at_least_float32(logits)
    return -(logits.log_softmax(-1) * one_hot(y, logits.shape[-1], logits.dtype)).sum(-1).mean()


def mean_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of `[n, outputs]`."""
    return (at_least_float32(prediction) - y).square().mean()


def criterion(kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the task loss of a kind of task: mean cross-entropy, or mean squared error."""
    return cross_entropy if kind == "classification" else mean_squared_error


def score(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the figure that people read: accuracy in [0, 1], or the mean squared error."""
    if kind == "classification":
        return (prediction.argmax(-1) == y).to(at_least_float32(prediction).dtype).mean()
    return mean_squared_error(prediction, y)


# Adaptation by gradients.


def gradient(
    function: Callable[[Params], tuple[Tensor, Any]], at: Params, *, differentiable: bool
) -> tuple[Params, Any]:
    """Return the gradient of a function's first answer, and its second; no graph of it is kept unless asked for."""
    if differentiable:
        kept: tuple[Params, Any] = grad(function, has_aux=True)(at)
        return kept
    with torch.no_grad():
        # torch's stub knows only the pair that `vjp` returns without `has_aux`.
        value, pull, aux = vjp(function, at, has_aux=True)  # type: ignore[misc]
        grads: Params = pull(torch.ones_like(value), retain_graph=False, create_graph=False)[0]
        return detach_params(grads), aux
