"""The one place where a batch of tasks exists: meta-gradients and test scores of many tasks, by any learner.

A plan says how the batch runs; all plans give the same gradients.

- `loop`: one task after another; the reference, and the mode to debug in.
- `vmap`: `vmap(grad(loss))`, per-task gradients of all tasks at once.
- `fold`: `grad(vmap(loss))`, for learners whose tasks share their weights: the tasks become one large batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map

from metaforge.errors import ConfigError
from metaforge.functional import added, one_task, score, split_state, sum_of
from metaforge.protocols import Aux, Examples, Kind, Learner, Params, Regularizer, Task, TaskSpec

Plan = Literal["loop", "vmap", "fold"]

# Input numbers that go through the network together, (in evaluation, in training). Measured on one AVX-512 thread,
# convolutional nets of four layers on 28 px images, 5-way 1-shot, allocator thresholds raised.
# - Evaluation, three steps, 15 queries (62,720 numbers in a task): vmap of 4 tasks 46 tasks/s, of 25 tasks 34, a loop
#   25. On vectors, vmap of 100 tasks is 30 times a loop.
# - Training, second order, 16 tasks. 5 queries (376,320 numbers in all): the whole batch 137 tasks/s, chunks of 4 104.
#   15 queries (1,003,520): the whole batch 53, chunks of 4 62. So a batch is divided from half a million numbers on.
# Elsewhere than on a CPU only memory is the limit; no speed was measured there.
_NUMBERS = {"cpu": (1 << 18, 1 << 19)}
_NUMBERS_ELSEWHERE = (1 << 22, 1 << 21)
_MOST_EVALUATED = 100


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


def choose_plan(learner: Learner, plan: str) -> Plan:
    """Return the plan to run: the one asked for, or under `auto` the one that measured fastest for such a learner.

    Learners that adapt in steps run under `vmap`: with the allocator's thresholds raised it took half the time of the
    loop on stride-2 convolutions and a sixth on small MLPs. The others share their weights and fold the tasks.
    """
    if plan == "fold" and learner.tags.adapts:
        raise ConfigError(
            f"plan 'fold' needs weights that all tasks share; {type(learner).__name__} adapts them for each task",
            where="engine.plan",
            remedy="use 'loop', 'vmap' or 'auto'",
        )
    if plan in ("loop", "vmap", "fold"):
        return cast(Plan, plan)
    return "vmap" if learner.tags.adapts else "fold"


def choose_chunk(spec: TaskSpec, device: torch.device, asked: int | None, *, training: bool) -> int:
    """Return how many tasks to compute together: as many as asked for, or what the size of a task allows."""
    if asked is not None:
        return asked
    task = math.prod(spec.x_shape) * spec.shape.ways * (spec.shape.shots + spec.shape.queries)
    chunk = max(_NUMBERS.get(device.type, _NUMBERS_ELSEWHERE)[training] // task, 1)
    # Progress is shown between the chunks of an evaluation, which has no batches of its own.
    return chunk if training else min(chunk, _MOST_EVALUATED)


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
) -> MetaStep:
    """Return the gradient of the mean task loss (and of the regularizers' terms) over a batch of tasks.

    `tasks` has a leading axis on every tensor, `keys` is `[tasks]`. At most `chunk` tasks run at once. With a `share`,
    these tasks are a part of the batch, and the answer is that of the whole batch.
    """
    params, state = split_state(values)
    share = share or Share(len(keys), (len(keys),))
    combining = [r for r in regularizers if r.combine(keys.new_ones(share.total, dtype=torch.float32)) is not None]
    run = {"loop": _looped, "vmap": _vmapped, "fold": _folded}[plan]
    groups: list[Params] = []
    parts: list[_Part] = []
    first = 0
    for size in share.groups:
        sums = Params()
        for begin in range(first, first + size, chunk or size):
            piece = slice(begin, min(begin + (chunk or size), first + size))
            part = run(learner, params, state, _sliced(tasks, piece), keys[piece])
            sums = added(sums, {n: len(part.losses) / share.total * change for n, change in part.state.items()})
            if not combining:
                # Every weight is known, so this piece's graph can go before the next piece begins.
                sums = added(sums, part.pull(torch.full_like(part.losses, 1 / share.total)))
                part = part._replace(pull=_spent)
            parts.append(part._replace(group=len(groups)))
        groups.append(sums)
        first += size
    losses = torch.cat([part.losses for part in parts])
    metrics = {n: torch.cat([part.metrics[n] for part in parts]) for n in parts[0].metrics}
    columns = share.gather(torch.stack([losses, *(figures.to(losses.dtype) for figures in metrics.values())], 1))
    if combining:
        weights = grad(lambda x: _combined(x, combining))(columns[:, 0])
        own = weights[share.first : share.first + len(losses)]
        for part, weight in zip(parts, own.split([len(part.losses) for part in parts]), strict=True):
            groups[part.group] = added(groups[part.group], part.pull(weight))
    joined = share.join(groups)
    grads, change = split_state(joined)
    for regularizer in regularizers:
        grads = added(grads, _penalty_grads(regularizer, params, state))
    figures = dict(zip(metrics, columns[:, 1:].unbind(1), strict=True))
    return MetaStep(grads, change, columns[:, 0], figures)


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
    losses: Tensor
    pull: Callable[[Tensor], Params]
    state: Params
    metrics: Params
    group: int = 0


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
    return _Part(losses, lambda weight: pull(weight)[0], _mean(aux.state), aux.metrics)


def _loss_of(learner: Learner, state: Params) -> Callable[[Params, Task, Tensor], tuple[Tensor, tuple[Tensor, Aux]]]:
    def loss(params: Params, task: Task, key: Tensor) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = learner.loss(params | state, task, key)
        return value, (value, Aux(dict(aux.metrics), dict(aux.state)))

    return loss


def _per_task(grads: Params, aux: tuple[Tensor, Aux]) -> _Part:
    losses, (metrics, state) = aux

    def pull(weight: Tensor) -> Params:
        return {name: torch.tensordot(weight, value, 1) for name, value in grads.items()}

    return _Part(losses, pull, _mean(state), metrics)


def _spent(weight: Tensor) -> Params:
    raise AssertionError("this piece's gradients were already taken")


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
