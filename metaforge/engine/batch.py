"""The one place where a batch of tasks exists: meta-gradients and test scores of many tasks, by any learner.

A plan says how the batch runs; all plans give the same gradients.

- `loop`: one task after another, each alone; the reference, and the mode to debug in.
- `vmap`: `vmap(grad(loss))`, per-task gradients of all tasks at once.
- `fold`: `grad(vmap(loss))`: what tasks share, such as the weights before adaptation, meets them as one large batch.
  Torch's own fused norms give wrong second derivatives in this order, so a learner that calls them cannot take it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import add_params, detach_params, gradient, one_task, split_state, sum_of
from metaforge.authoring.layers import images
from metaforge.authoring.losses import score
from metaforge.authoring.protocols import Aux, Examples, Kind, Learner, Params, Regularizer, Task
from metaforge.engine.plans import Plan
from metaforge.engine.precision import primitive_attention

# Not the name of a parameter, which has no spaces.
_ROWS = "figures of all tasks"


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


def eager(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function."""
    return function(*arguments)


@dataclass(frozen=True)
class Share:
    """This process's part of a batch of `total` tasks, in groups, and how the parts of all processes are joined.

    `groups` are numbers of tasks that follow one another, from task `first` on. `join` returns the sum over all groups
    of all processes, given what the own ones came to.
    """

    total: int
    groups: tuple[int, ...]
    first: int = 0
    join: Callable[[list[Params]], Params] = lambda groups: functools.reduce(add_params, groups)

    def joined(self, groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
        """Return the sum over all groups and, of figures of the own tasks `[own, n]`, those of all `[total, n]`.

        Beside one another, so that processes wait for one another once.
        """
        own = pad(rows, (0, 0, self.first, self.total - self.first - len(rows)))
        sums = self.join([{**group, _ROWS: torch.zeros_like(own) if i else own} for i, group in enumerate(groups)])
        rows = sums.pop(_ROWS)
        return sums, rows


@primitive_attention()
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
    call: Call = eager,
) -> MetaStep:
    """Return the gradient of the mean task loss (and of the regularizers' terms) over a batch of tasks.

    `tasks` has a leading axis on every tensor, `keys` is `[tasks]`. At most `chunk` tasks run at once, one in a loop.
    With a `share`, these tasks are a part of the batch, and the answer is that of the whole batch. `call` evaluates a
    function of tensors: at once, or compiled.
    """
    params, state = split_state(values)
    share = share or Share(len(keys), (len(keys),))
    combining = combining_regularizers(regularizers, share.total)
    run = functools.partial({"loop": _looped, "vmap": _vmapped, "fold": _folded}[plan], learner)
    whole = functools.partial(_whole, run)
    with _layers_together(plan, keys.device):
        groups: list[Params] = [{} for _ in share.groups]
        parts: list[tuple[int, _Part]] = []
        for group, piece in _pieces(share.groups, 1 if plan == "loop" else chunk):
            arguments = (params, state, _sliced(tasks, piece), keys[piece])
            weight = torch.full((piece.stop - piece.start,), 1 / share.total, dtype=torch.float64, device=keys.device)
            part = run(*arguments) if combining else _Part(*call(whole, weight, *arguments))
            change = {n: len(part.losses) / share.total * moved for n, moved in part.state.items()}
            groups[group] = add_params(groups[group], add_params(change, part.sums))
            parts.append((group, part._replace(sums={})))
        losses = torch.cat([part.losses for _, part in parts])
        metrics = {n: torch.cat([part.metrics[n] for _, part in parts]) for n in parts[0][1].metrics}
        columns = torch.stack([losses, *(figures.to(losses.dtype) for figures in metrics.values())], 1)
        if combining:
            _, columns = share.joined([{}], columns)
            weights = grad(lambda x: _combined(x, combining))(columns[:, 0])
            own = weights[share.first : share.first + len(losses)].split([len(part.losses) for _, part in parts])
            for (group, part), weight in zip(parts, own, strict=True):
                groups[group] = add_params(groups[group], part.pulled(weight))
            sums = share.join(groups)
        else:
            sums, columns = share.joined(groups, columns)
        grads, change = split_state(sums)
        for regularizer in regularizers:
            grads = add_params(grads, _penalty_grads(regularizer, params, state))
        return MetaStep(grads, change, columns[:, 0], dict(zip(metrics, columns[:, 1:].unbind(1), strict=True)))


@contextmanager
def _layers_together(plan: Plan, device: torch.device) -> Iterator[None]:
    """Let layers on images take many tasks at once as was measured to be faster: on a CPU, in full precision."""
    pays = plan != "loop" and device.type == "cpu" and not torch.is_autocast_enabled(device.type)
    with images.together("pooled") if pays else nullcontext():
        yield


def _pieces(groups: Sequence[int], chunk: int | None) -> Iterator[tuple[int, slice]]:
    """Yield (group, its next tasks), at most `chunk` of them."""
    first = 0
    for group, size in enumerate(groups):
        for begin in range(first, first + size, chunk or size):
            yield group, slice(begin, min(begin + (chunk or size), first + size))
        first += size


def combining_regularizers(regularizers: Sequence[Regularizer], tasks: int) -> list[Regularizer]:
    """Return the regularizers with a term of the whole batch of task losses."""
    return [r for r in regularizers if r.combine(torch.ones(tasks)) is not None]


@primitive_attention()
def score_tasks(
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

    with torch.no_grad(), _layers_together(plan, tasks.support.x.device):
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


def _whole(run: Callable[..., _Part], weight: Tensor, *arguments: Any) -> tuple[Tensor, Params, Params, None, Params]:
    """Return a piece with its gradients taken: every weight is known, so its graph can go at once."""
    part = run(*arguments)
    return part.losses, part.state, part.metrics, None, part.pulled(weight)


def _looped(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    """Return what a piece of one task came to."""
    loss, metrics, change, pull = _differentiated(_loss_of(learner, state), params, one_task(tasks), keys[0])
    return _Part(loss.unsqueeze(0), change, _stacked([metrics]), lambda weight: pull(weight[0]))


def _vmapped(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    def one(task: Task, key: Tensor) -> tuple[Params, tuple[Tensor, Aux]]:
        return gradient(lambda p: _loss_of(learner, state)(p, task, key), params, differentiable=False)

    grads, (losses, (metrics, change)) = vmap(one)(tasks, keys)

    def pull(weight: Tensor) -> Params:
        # Not a matrix product, whose operands autocast would round.
        return {n: (weight.to(v.dtype).view(-1, *(1,) * (v.dim() - 1)) * v).sum(0) for n, v in grads.items()}

    return _Part(losses.detach(), _mean(change), metrics, pull)


def _folded(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> _Part:
    batched = vmap(_loss_of(learner, state), in_dims=(None, 0, 0))
    losses, metrics, change, pull = _differentiated(batched, params, tasks, keys)
    return _Part(losses, _mean(change), metrics, pull)


def _differentiated(
    function: Callable[..., tuple[Tensor, tuple[Tensor, Aux]]], params: Params, *rest: Any
) -> tuple[Tensor, Params, Params, Callable[[Tensor], Params]]:
    """Return losses, figures, changes of the state, and the pull-back of the losses to the parameters.

    By plain autograd: the transforms of `torch.func` would keep a graph of the gradient too, which nobody asks for.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        losses, (_, (metrics, change)) = function(leaves, *rest)

    def pull(weight: Tensor) -> Params:
        grads = torch.autograd.grad(losses, list(leaves.values()), weight.to(losses.dtype), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True))

    return losses.detach(), detach_params(metrics), detach_params(change), pull


def _loss_of(learner: Learner, state: Params) -> Callable[[Params, Task, Tensor], tuple[Tensor, tuple[Tensor, Aux]]]:
    def loss(params: Params, task: Task, key: Tensor) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = learner.loss(params | state, task, key)
        return value, (value, Aux(dict(aux.metrics), dict(aux.state)))

    return loss


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
