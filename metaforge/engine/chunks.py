"""The meta-gradient of one chunk of tasks, under each plan.

A plan is the order in which `grad` and `vmap` over the tasks are applied. All plans give the same gradients.

- `loop`: no `vmap`; one task after another. It is the reference, and the easiest plan to debug.
- `vmap`: `vmap(grad(loss))`. Per-task gradients, for all tasks of the chunk in one call, which are then summed.
- `fold`: `grad(vmap(loss))`. One backward pass through the batched loss; operations on tensors that all tasks share,
  such as the weights before adaptation, run as one large batch. PyTorch's fused norm functions give wrong second
  derivatives in this order, so a learner that adapts through them cannot use this plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import detach_params, gradient, one_task, sum_of
from metaforge.authoring.protocols import Aux, Learner, Params, Task
from metaforge.engine.contract import DETACHED, checked_loss
from metaforge.engine.plans import Plan
from metaforge.errors import ContractError


class ChunkResult(NamedTuple):
    """The losses and metrics of a chunk of tasks, and their mean change of the `state.` entries.

    Attributes:
        losses: The task losses `[tasks]`.
        state: What a task adds to each `state.` entry, averaged over the tasks of the chunk.
        metrics: Each metric `[tasks]`, by name.
        terms: Each term that regularizers read `[tasks]`, by name.
    """

    losses: Tensor
    state: Params
    metrics: Params
    terms: Params = {}


class ByTask(NamedTuple):
    """The losses and terms of a batch of tasks, or a weight for each of them: the derivative of the outer loss.

    Attributes:
        losses: A number for each task loss `[tasks]`.
        terms: Numbers for the terms that regularizers read, each `[tasks]`, by name.
    """

    losses: Tensor
    terms: Params = {}


# Maps weights to the gradient of the weighted sum of the losses and terms of all tasks (a vector-Jacobian product).
Pullback = Callable[[ByTask], Params]
# Maps (parameters, state, tasks, keys) to the result of a chunk and the pullback of its losses and terms. The pullback
# holds the graph; under `vmap` it holds the gradient of each task instead, or with terms nothing: it computes the chunk
# anew.
ChunkForward = Callable[[Params, Params, Task, Tensor], tuple[ChunkResult, Pullback]]
# Maps (weights, parameters, state, tasks, keys) to the result of a chunk and the gradient of the weighted losses.
ChunkGradients = Callable[[Tensor, Params, Params, Task, Tensor], tuple[ChunkResult, Params]]


def chunk_forward(learner: Learner, plan: Plan, terms: Sequence[str] = ()) -> ChunkForward:
    """Return the function that computes the losses of a chunk, and their pullback for weights that are known later.

    Args:
        learner: The learner.
        plan: The plan.
        terms: The names of the terms that regularizers read, which then have weights too.
    """

    def forward(params: Params, state: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
        loss = _loss_of(learner, state, terms)
        if plan == "loop":
            return _loop(loss, params, tasks, keys)
        if plan == "vmap":
            return (_vmap_again if terms else _vmap)(loss, params, tasks, keys)
        return _fold(loss, params, tasks, keys)

    return forward


def chunk_gradients(learner: Learner, plan: Plan) -> ChunkGradients:
    """Return the function that computes the losses of a chunk and the gradient of their sum with given weights.

    It is a pure function of tensors, so `metaforge.engine.compiler.Compiler` can compile it.
    """
    forward = chunk_forward(learner, plan)

    def gradients(
        weights: Tensor, params: Params, state: Params, tasks: Task, keys: Tensor
    ) -> tuple[ChunkResult, Params]:
        result, pullback = forward(params, state, tasks, keys)
        return result, pullback(ByTask(weights))

    return gradients


# A learner's loss as a function of (parameters, task, key); the loss is in its auxiliary output too.
_Loss = Callable[[Params, Task, Tensor], tuple[Tensor, tuple[Tensor, Aux]]]


def _loop(loss: _Loss, params: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    """Compute a chunk of one task."""
    result, pullback = _by_autograd(loss, params, one_task(tasks), keys[0])
    metrics, terms = tree_map(lambda scalar: torch.stack([scalar]), (result.metrics, result.terms))
    batched = ChunkResult(result.losses.unsqueeze(0), result.state, metrics, terms)
    return batched, lambda weights: pullback(tree_map(lambda weight: weight[0], weights))


def _vmap(loss: _Loss, params: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    def per_task(task: Task, key: Tensor) -> tuple[Params, tuple[Tensor, Aux]]:
        return gradient(lambda p: loss(p, task, key), params, differentiable=False)

    grads, (losses, aux) = vmap(per_task)(tasks, keys)

    def pullback(weights: ByTask) -> Params:
        # Not a matrix product, because autocast would round its operands.
        return {n: (weights.losses.to(v.dtype).view(-1, *(1,) * (v.dim() - 1)) * v).sum(0) for n, v in grads.items()}

    return ChunkResult(losses.detach(), _mean(aux.state), aux.metrics), pullback


def _vmap_again(loss: _Loss, params: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    """Compute a chunk by plan `vmap` twice, without and with gradients.

    Once the weights are known, a task has one gradient. Before, it would have one for its loss and one for each term.
    """
    with torch.no_grad():
        _, (losses, aux) = vmap(loss, in_dims=(None, 0, 0))(params, tasks, keys)

    def per_task(task: Task, key: Tensor, weights: ByTask) -> Params:
        def weighted(params: Params) -> tuple[Tensor, Params]:
            value, (_, aux) = loss(params, task, key)
            parts = [weights.losses.to(value.dtype) * value]
            parts += [weight.to(aux.terms[name].dtype) * aux.terms[name] for name, weight in weights.terms.items()]
            return sum_of(parts), {}

        return gradient(weighted, params, differentiable=False)[0]

    def pullback(weights: ByTask) -> Params:
        return {name: value.sum(0) for name, value in vmap(per_task)(tasks, keys, weights).items()}

    return ChunkResult(losses, _mean(aux.state), aux.metrics, aux.terms), pullback


def _fold(loss: _Loss, params: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    result, pullback = _by_autograd(vmap(loss, in_dims=(None, 0, 0)), params, tasks, keys)
    return result._replace(state=_mean(result.state)), pullback


def _by_autograd(
    function: Callable[..., tuple[Tensor, tuple[Tensor, Aux]]], params: Params, *rest: Any
) -> tuple[ChunkResult, Pullback]:
    """Return the detached result of `function(params, *rest)`, and the pullback of its losses and terms.

    It calls `torch.autograd.grad`, because `torch.func.grad` would also build a graph of the gradient, which is not
    needed here.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        losses, (_, aux) = function(leaves, *rest)

    def pullback(weights: ByTask) -> Params:
        if not leaves:
            return {}
        if not losses.requires_grad:
            raise ContractError(DETACHED)
        weighted = [(losses, weights.losses), *((aux.terms[name], weight) for name, weight in weights.terms.items())]
        # A term may be a constant.
        outputs, factors = zip(*[(out, w.to(out.dtype)) for out, w in weighted if out.requires_grad], strict=True)
        grads = torch.autograd.grad(outputs, list(leaves.values()), factors, allow_unused=True)
        # A gradient of zeros is legitimate; None means that the loss does not depend on the parameter at all.
        if all(grad is None for grad in grads):
            raise ContractError(DETACHED)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    metrics, state, terms = map(detach_params, aux)
    return ChunkResult(losses.detach(), state, metrics, terms), pullback


def _loss_of(learner: Learner, state: Params, terms: Sequence[str]) -> _Loss:
    """Return the learner's loss as a function of the parameters; its `Aux` has these terms and no others."""

    def loss(params: Params, task: Task, key: Tensor) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = checked_loss(learner.loss(params | state, task, key), state, terms)
        return value, (value, Aux(dict(aux.metrics), dict(aux.state), {name: aux.terms[name] for name in terms}))

    return loss


def _mean(state: Params) -> Params:
    """Return the mean of each entry over the tasks."""
    return {name: value.mean(0) for name, value in state.items()}
