"""Methods that learn an initialisation, a context or features, and adapt by plain gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import (
    Plain,
    adapted,
    adapted_by_constants,
    class_means,
    gradients,
    leaves,
    moved,
    of,
)
from metaforge.authoring import Examples, Params, Task


def maml(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML."""
    return plain.loss(adapted(values, task, plain, plain.weights), task.query)


def fomaml(values: Params, task: Task, plain: Plain) -> Tensor:
    """First-order MAML."""
    return plain.loss(adapted_by_constants(values, task, plain, plain.weights), task.query)


def boil(values: Params, task: Task, plain: Plain) -> Tensor:
    """BOIL: MAML on the body, including its batch norm."""
    return plain.loss(adapted(values, task, plain, plain.body), task.query)


def anil(values: Params, task: Task, plain: Plain) -> Tensor:
    """ANIL: MAML on the head alone, on features that are computed once."""
    support, query = plain.features(values, task.support.x), plain.features(values, task.query.x)
    weight, bias = of(values, plain.head).values()
    for _ in range(plain.options.steps):
        loss = plain.criterion(F.linear(support, weight, bias), task.support.y)
        grads = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        weight, bias = (value - plain.adapters["sgd"].lr * g for value, g in zip((weight, bias), grads, strict=True))
    return plain.criterion(F.linear(query, weight, bias), task.query.y)


def reptile(values: Params, task: Task, plain: Plain) -> Tensor:
    """Reptile: half the squared distance to the weights after some steps on all examples, by SGD or Adam with β1 = 0.

    Its gradient is the direction from these weights to the initial ones. `values` has Adam's second moment and count.
    """
    data = Examples(*(torch.cat(pair) for pair in zip(task.support, task.query, strict=True)))
    start = of(values, list(plain.everything.values()))
    fast = leaves(start)
    adam, state = plain.adapters.get("adam"), "state.adapters.adam."
    second = {name: values[f"{state}second.{name}"] for name in fast} if adam else {}
    for step in range(plain.options.steps):
        grads = gradients(plain.loss(fast, data), fast, first_order=True)
        if adam:
            second = {n: adam.beta2 * second[n] + (1 - adam.beta2) * g.square() for n, g in grads.items()}
            unbias = (1 - adam.beta2 ** (values[f"{state}count"] + step + 1)).sqrt()
            grads = {name: g / (second[name].sqrt() / unbias + adam.eps) for name, g in grads.items()}
        fast = leaves(moved(fast, grads, (adam or plain.adapters["sgd"]).lr))
    return 0.5 * torch.stack([(value - fast[n].detach()).square().sum() for n, value in start.items()]).sum()


def mamlpp(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML++ at the start of the training, when the query losses after all steps have equal weights.

    Rates, and scale and shift of batch norm, are those of the step. Running averages of each step, which normalise
    nothing, are not kept.
    """
    fast, losses = of(values, plain.weights), []
    for step in range(plain.options.steps):
        norms = {name: values[name][step] for name in plain.norms}
        grads = gradients(plain.loss(norms | fast, task.support), fast)
        fast = {n: value - values[f"adapters.lslr.rate.{n}"][step] * grads[n] for n, value in fast.items()}
        losses.append(plain.loss(norms | fast, task.query))
    return torch.stack(losses).mean()


def cavia(values: Params, task: Task, plain: Plain) -> Tensor:
    """CAVIA: MAML on a context that starts at zero."""
    context = task.support.x.new_zeros(plain.options.context, requires_grad=True)
    for _ in range(plain.options.steps):
        loss = plain.loss(values, task.support, context)
        context = context - plain.adapters["sgd"].lr * torch.autograd.grad(loss, context, create_graph=True)[0]
    return plain.loss(values, task.query, context)


def proto_maml(values: Params, task: Task, plain: Plain) -> Tensor:
    """First-order MAML whose head is made from the prototypes of the task, through which the gradient flows."""
    prototypes = class_means(plain.features(values, task.support.x), task.support.y)
    weight, bias = plain.head
    values = values | {weight: 2 * prototypes, bias: -prototypes.square().sum(1)}
    return plain.loss(adapted_by_constants(values, task, plain, plain.weights), task.query)
