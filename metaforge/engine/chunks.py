"""The meta-gradient of one chunk of tasks, under each plan.

A plan is the order in which `grad` and `vmap` over the tasks are applied. All plans give the same gradients.

- `loop`: no `vmap`; one task after another. It is the reference, and the easiest plan to debug.
- `vmap`: `vmap(grad(loss))`. Per-task gradients, for all tasks of the chunk in one call, which are then summed.
- `fold`: `grad(vmap(loss))`. One backward pass through the batched loss; operations on tensors that all tasks share,
  such as the weights before adaptation, run as one large batch. PyTorch's fused norm functions give wrong second
  derivatives in this order, so a learner that adapts through them cannot use this plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import detach_params, gradient, one_task
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
    """

    losses: Tensor
    state: Params
    metrics: Params


# Maps weights `[tasks]` to the gradient of the weighted sum of the task losses (a vector-Jacobian product).
Pullback = Callable[[Tensor], Params]
# Maps (parameters, state, tasks, keys) to the result of a chunk and the pullback of its losses. The pullback holds the
# graph; under `vmap` it holds the gradient of each task instead.
ChunkForward = Callable[[Params, Params, Task, Tensor], tuple[ChunkResult, Pullback]]
# Maps (weights, parameters, state, tasks, keys) to the result of a chunk and the gradient of the weighted losses.
ChunkGradients = Callable[[Tensor, Params, Params, Task, Tensor], tuple[ChunkResult, Params]]


def chunk_forward(learner: Learner, plan: Plan) -> ChunkForward:
    """Return the function that computes the losses of a chunk, and their pullback for weights that are known later."""

    def forward(params: Params, state: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
        if plan == "loop":
            return _loop(learner, params, state, tasks, keys)
        if plan == "vmap":
            return _vmap(learner, params, state, tasks, keys)
        return _fold(learner, params, state, tasks, keys)

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
        return result, pullback(weights)

    return gradients


def _loop(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    """Compute a chunk of one task."""
    result, pullback = _by_autograd(_loss_of(learner, state), params, one_task(tasks), keys[0])
    metrics = tree_map(lambda metric: torch.stack([metric]), result.metrics)
    return ChunkResult(result.losses.unsqueeze(0), result.state, metrics), lambda weights: pullback(weights[0])


def _vmap(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    def per_task(task: Task, key: Tensor) -> tuple[Params, tuple[Tensor, Aux]]:
        return gradient(lambda p: _loss_of(learner, state)(p, task, key), params, differentiable=False)

    grads, (losses, (metrics, change)) = vmap(per_task)(tasks, keys)

    def pullback(weights: Tensor) -> Params:
        # Not a matrix product, because autocast would round its operands.
        return {n: (weights.to(v.dtype).view(-1, *(1,) * (v.dim() - 1)) * v).sum(0) for n, v in grads.items()}

    return ChunkResult(losses.detach(), _mean(change), metrics), pullback


def _fold(learner: Learner, params: Params, state: Params, tasks: Task, keys: Tensor) -> tuple[ChunkResult, Pullback]:
    batched_loss = vmap(_loss_of(learner, state), in_dims=(None, 0, 0))
    result, pullback = _by_autograd(batched_loss, params, tasks, keys)
    return result._replace(state=_mean(result.state)), pullback


def _by_autograd(
    function: Callable[..., tuple[Tensor, tuple[Tensor, Aux]]], params: Params, *rest: Any
) -> tuple[ChunkResult, Pullback]:
    """Return the detached result of `function(params, *rest)`, and the pullback of its losses to the parameters.

    It calls `torch.autograd.grad`, because `torch.func.grad` would also build a graph of the gradient, which is not
    needed here.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        losses, (_, (metrics, change)) = function(leaves, *rest)

    def pullback(weights: Tensor) -> Params:
        if not leaves:
            return {}
        if not losses.requires_grad:
            raise ContractError(DETACHED)
        grads = torch.autograd.grad(losses, list(leaves.values()), weights.to(losses.dtype), allow_unused=True)
        # A gradient of zeros is legitimate; None means that the loss does not depend on the parameter at all.
        if all(grad is None for grad in grads):
            raise ContractError(DETACHED)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    return ChunkResult(losses.detach(), detach_params(change), detach_params(metrics)), pullback


def _loss_of(learner: Learner, state: Params) -> Callable[[Params, Task, Tensor], tuple[Tensor, tuple[Tensor, Aux]]]:
    """Return the learner's loss as a function of (parameters, task, key); the loss is in its auxiliary output too."""

    def loss(params: Params, task: Task, key: Tensor) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = checked_loss(learner.loss(params | state, task, key), state)
        return value, (value, Aux(dict(aux.metrics), dict(aux.state)))

    return loss


def _mean(state: Params) -> Params:
    """Return the mean of each entry over the tasks."""
    return {name: value.mean(0) for name, value in state.items()}
