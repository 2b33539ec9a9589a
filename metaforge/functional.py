"""What learners are written with: dictionaries of parameters, task losses, chains of adapters and the inner loop.

Everything here is safe under `torch.func` transforms, in either order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from metaforge.protocols import STATE, Examples, GradientTransform, Kind, Params, Task
from metaforge.recompute import recomputed

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


def detached(params: Params) -> Params:
    """Return the same tensors, cut from every graph."""
    return {name: value.detach() for name, value in params.items()}


def added(params: Params, updates: Params) -> Params:
    """Return `params + updates` name by name; names that only one side has are kept."""
    total = dict(params)
    for name, value in updates.items():
        total[name] = total[name] + value if name in total else value
    return total


def advanced(values: Params, changes: Params) -> Params:
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


def widened(x: Tensor) -> Tensor:
    """Return numbers that a product has rounded as float32, any others as they are: sums need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` `[n, classes]` and labels `[n]`."""
    logits = widened(logits)
    return -(logits.log_softmax(-1) * one_hot(y, logits.shape[-1], logits.dtype)).sum(-1).mean()


def mean_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of `[n, outputs]`."""
    return (widened(prediction) - y).square().mean()


def criterion(kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the task loss of a kind of task: mean cross-entropy, or mean squared error."""
    return cross_entropy if kind == "classification" else mean_squared_error


def score(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the figure that people read: accuracy in [0, 1], or the mean squared error."""
    if kind == "classification":
        return (prediction.argmax(-1) == y).to(widened(prediction).dtype).mean()
    return mean_squared_error(prediction, y)


# Adaptation by gradients.


class Chain:
    """Adapters applied one after another, itself an adapter; each keeps its entries under its own name."""

    def __init__(self, adapters: Mapping[str, GradientTransform]) -> None:
        self.adapters = dict(adapters)

    def init(self, params: Params) -> Params:
        """Return every adapter's entries, prefixed by its name."""
        return self._joined({name: adapter.init(params) for name, adapter in self.adapters.items()})

    def start(self, meta: Params, params: Params) -> Params:
        """Return every adapter's first state, prefixed by its name."""
        return self._joined({name: a.start(select(meta, name), params) for name, a in self.adapters.items()})

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return the last adapter's output, each adapter's output being the next one's gradient, and the new state."""
        states = {}
        for name, adapter in self.adapters.items():
            grads, states[name] = adapter.update(select(meta, name), grads, select(state, name), params, step)
        return grads, self._joined(states)

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what each adapter adds to its `state.` entries."""
        return self._joined({n: a.carry(select(meta, n), select(state, n)) for n, a in self.adapters.items()})

    @staticmethod
    def _joined(parts: Mapping[str, Params]) -> Params:
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}


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
        return detached(grads), aux


# `(values, step, *given)` to the support loss and what to add to the `state.` entries.
Objective = Callable[..., tuple[Tensor, Params]]


def descend(
    objective: Objective,
    values: Params,
    fast: Params,
    adapter: GradientTransform,
    steps: int,
    *given: Tensor,
    first_order: bool = False,
    recompute: bool = False,
) -> tuple[Params, Params]:
    """Adapt the entries `fast` of `values` for a number of steps; return (adapted entries, what to add to the state).

    `objective(values, step, *given)` returns the support loss and what to add to the `state.` entries. With
    `first_order` the inner gradients are constants: no second-order graph is built, the adapted weights keep the
    identity as Jacobian. With `recompute` each step is done again for the meta-gradient, instead of being kept: memory
    hardly grows with the steps; `given` must then hold every tensor that the objective uses beside the values.
    """
    meta = select(values, "adapters")
    base = detached(values) if first_order else values
    differentiable = not first_order and torch.is_grad_enabled()
    state, total = adapter.start(meta, fast), Params()

    def once(
        base: Params, meta: Params, fast: Params, state: Params, total: Params, step: int, *given: Tensor
    ) -> tuple[Params, Params, Params]:
        seen = base | advanced(base, total)
        at = detached(fast) if first_order else fast
        grads, delta = gradient(lambda p: objective(seen | p, step, *given), at, differentiable=differentiable)
        updates, state = adapter.update(meta, grads, state, fast, step)
        fast = {name: value - updates[name] for name, value in fast.items()}
        return fast, state, added(total, detached(delta))

    for step in range(steps):
        if recompute and differentiable:
            now = partial(_at_step, once, step)
            fast, state, total = recomputed(now, base, meta, fast, state, total, *given)
        else:
            fast, state, total = once(base, meta, fast, state, total, step, *given)
    return fast, added(total, prefixed("adapters", adapter.carry(meta, state)))


def _at_step(once: Callable[..., Any], step: int, *arguments: Any) -> Any:
    return once(*arguments[:5], step, *arguments[5:])
