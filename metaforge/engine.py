"""The one place where a batch of tasks exists: meta-gradients and test scores of many tasks, by any learner.

A plan says how the batch runs; all plans give the same gradients.

- `loop`: one task after another; the reference, and the mode to debug in.
- `vmap`: `vmap(grad(loss))`, per-task gradients of all tasks at once.
- `fold`: `grad(vmap(loss))`, for learners whose tasks share their weights: the tasks become one large batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map

from metaforge.functional import added, one_task, score, split_state, sum_of
from metaforge.plans import Plan
from metaforge.protocols import Aux, Examples, Kind, Learner, Params, Regularizer, Task


@dataclass(frozen=True)
class MetaStep:
    """One outer step: the meta-gradient, what to add to the state, and each task's loss and figures `[tasks]`."""

    grads: Params
    state: Params
    losses: Tensor
    metrics: Params


class Scores(NamedTuple):
    """Each test task's score `[tasks]`, predictions `[tasks, n, outputs]` and the learner's own figures `[tasks]`."""

    scores: Tensor
    predictions: Tensor
    measures: Params


def prepare(task: Task, device: torch.device, dtype: torch.dtype) -> Task:
    """Return the task on `device`: bytes become floats in [0, 1], floats get `dtype`, labels stay integers."""

    def moved(x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return x.to(device).to(dtype) / 255
        return x.to(device, dtype) if x.is_floating_point() else x.to(device)

    return Task(Examples(*map(moved, task.support)), Examples(*map(moved, task.query)))


Call = Callable[..., Any]


def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function."""
    return function(*arguments)


@dataclass(frozen=True)
class Share:
    """This process's part of a batch of `total` tasks, in groups, and how the parts of all processes are joined.

    `groups` are numbers of tasks that follow one another, from task `first` on.
    `gather` returns a column of figures of all tasks, given that of the own ones; `join` the sum of the gradients of
    all groups of all processes, given those of the own ones.
    """

    total: int
    groups: tuple[int, ...]
    first: int = 0
    gather: Callable[[Tensor], Tensor] = lambda own: own
    join: Callable[[list[Params]], Params] = lambda groups: functools.reduce(added, groups)


def meta_gradients(
    learner: Learner,
    values: Params,
    tasks: Task,
    keys: Tensor,
    *,
    plan: Plan = "loop",
    chunk: int | None = None,
    regularizers: Sequence[Regularizer] = (),
    share: Share | None = None,
    call: Call = at_once,
) -> MetaStep:
    """Return the gradient of the mean task loss (and of the regularizers' terms) over a batch of tasks.

    `tasks` has a leading axis on every tensor, `keys` is `[tasks]`. At most `chunk` tasks run at once. With a `share`,
    these tasks are a part of the batch, and the answer is that of the whole batch. `call` evaluates a function of
    tensors: at once, or compiled.
    """
    params, state = split_state(values)
    share = share or Share(len(keys), (len(keys),))
    combining = combines(regularizers, share.total)
    run = {"loop": _looped, "vmap": _vmapped, "fold": _folded}[plan]

    def whole(*arguments: Any) -> tuple[Tensor, Params, Params, None, Params]:
        """Return a piece with its gradients taken: every weight is known, so its graph can go at once."""
        part = run(learner, *arguments)
        return part.losses, part.state, part.metrics, None, part.pulled(torch.full_like(part.losses, 1 / share.total))

    groups: list[Params] = []
    parts: list[tuple[int, _Part]] = []
    first = 0
    for index, size in enumerate(share.groups):
        groups.append({})
        for begin in range(first, first + size, chunk or size):
            piece = slice(begin, min(begin + (chunk or size), first + size))
            arguments = (params, state, _sliced(tasks, piece), keys[piece])
            part = run(learner, *arguments) if combining else _Part(*call(whole, *arguments))
            change = {n: len(part.losses) / share.total * moved for n, moved in part.state.items()}
            groups[index] = added(groups[index], added(change, part.sums))
            parts.append((index, part._replace(sums={})))
        first += size
    losses = torch.cat([part.losses for _, part in parts])
    metrics = {n: torch.cat([part.metrics[n] for _, part in parts]) for n in parts[0][1].metrics}
    columns = share.gather(torch.stack([losses, *(figures.to(losses.dtype) for figures in metrics.values())], 1))
    if combining:
        weights = grad(lambda x: _combined(x, combining))(columns[:, 0])
        own = weights[share.first : share.first + len(losses)].split([len(part.losses) for _, part in parts])
        for (index, part), weight in zip(parts, own, strict=True):
            groups[index] = added(groups[index], part.pulled(weight))
    grads, change = split_state(share.join(groups))
    for regularizer in regularizers:
        grads = added(grads, _penalty_grads(regularizer, params, state))
    figures = dict(zip(metrics, columns[:, 1:].unbind(1), strict=True))
    return MetaStep(grads, change, columns[:, 0], figures)


def combines(regularizers: Sequence[Regularizer], tasks: int) -> list[Regularizer]:
    """Return the regularizers with a term of the whole batch of task losses."""
    return [r for r in regularizers if r.combine(torch.ones(tasks)) is not None]


def evaluate(
    learner: Learner,
    values: Params,
    tasks: Task,
    keys: Tensor | None = None,
    *,
    steps: int | None = None,
    plan: Plan = "loop",
    measure: bool = False,
) -> Scores:
    """Return the scores of a batch of test tasks after adaptation; no graph is built and nothing is changed.

    With `measure`, the learner's own figures are taken too, with `keys` `[tasks]` for their noise.
    """

    def one(task: Task, key: Tensor | None) -> Scores:
        fast = learner.adapt(values, task.support, steps=steps)
        prediction = learner.predict(values, fast, task.query.x)
        kind: Kind = "regression" if task.query.y.is_floating_point() else "classification"
        figures = learner.measure(values, task, key) if measure and key is not None else {}
        return Scores(score(kind, prediction, task.query.y), prediction, figures)

    with torch.no_grad():
        if plan == "loop":
            results = [one(one_task(tasks, i), None if keys is None else keys[i]) for i in range(len(tasks.support.x))]
            return Scores(*_stacked(results))
        scores: Scores = vmap(one, in_dims=(0, None if keys is None else 0))(tasks, keys)
        return scores


class _Part(NamedTuple):
    """What a piece of a batch came to: losses `[tasks]`, mean change of the state, figures, and its gradients.

    `pull` gives them for a weight of each task; once the weights were known, `sums` has them instead.
    """

    losses: Tensor
    state: Params
    metrics: Params
    pull: Callable[[Tensor], Params] | None
    sums: Params = {}

    def pulled(self, weight: Tensor) -> Params:
        """Return the gradient of the tasks' losses `[tasks]` with these weights."""
        assert self.pull is not None, "this piece's gradients were already taken"
        return self.pull(weight)


def _looped(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    step = grad(_loss_of(learner, state), has_aux=True)
    results = [step(params, one_task(tasks, i), keys[i]) for i in range(len(keys))]
    return _per_task(*(_stacked(column) for column in zip(*results, strict=True)))


def _vmapped(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    grads, aux = vmap(grad(_loss_of(learner, state), has_aux=True), in_dims=(None, 0, 0))(params, tasks, keys)
    return _per_task(grads, aux)


def _folded(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    batched = vmap(_loss_of(learner, state), in_dims=(None, 0, 0))

    def losses_of(weights: Params) -> tuple[Tensor, tuple[Tensor, Aux]]:
        losses, aux = batched(weights, tasks, keys)
        return losses, aux

    # torch's stub knows only the pair that `vjp` returns without `has_aux`.
    losses, pull, (_, aux) = vjp(losses_of, params, has_aux=True)  # type: ignore[misc]
    return _Part(losses, _mean(aux.state), aux.metrics, lambda weight: pull(weight)[0])


def _loss_of(learner: Learner, state: Params) -> Callable[[Params, Task, Tensor], tuple[Tensor, tuple[Tensor, Aux]]]:
    def loss(params: Params, task: Task, key: Tensor) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = learner.loss(params | state, task, key)
        return value, (value, Aux(dict(aux.metrics), dict(aux.state)))

    return loss


def _per_task(grads: Params, aux: tuple[Tensor, Aux]) -> _Part:
    losses, (metrics, state) = aux

    def pull(weight: Tensor) -> Params:
        return {name: torch.tensordot(weight.to(value.dtype), value, 1) for name, value in grads.items()}

    return _Part(losses, _mean(state), metrics, pull)


def _mean(state: Params) -> Params:
    return {name: value.mean(0) for name, value in state.items()}


def _combined(losses: Tensor, regularizers: Sequence[Regularizer]) -> Tensor:
    terms = [term for r in regularizers if (term := r.combine(losses)) is not None]
    return sum_of([losses.mean(), *terms])


def _penalty_grads(regularizer: Regularizer, params: Params, state: Params) -> Params:
    if regularizer.penalty(params | state) is None:
        return {}
    grads: Params = grad(lambda p: regularizer.penalty(p | state))(params)
    return grads


def _sliced(tasks: Task, piece: slice) -> Task:
    return cast(Task, tree_map(lambda t: t[piece], tasks))


def _stacked(results: Sequence[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *results)
