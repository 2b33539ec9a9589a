"""iMAML: the gradient of the inner problem's solution by a linear system."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.learner_loops.plain import Plain, flat, gradients, leaves, moved, of
from metaforge.authoring import Params, Task


def imaml(values: Params, task: Task, plain: Plain) -> Tensor:
    """Return a scalar whose gradient is that of iMAML, (I + H/λ)⁻¹ ∇L_Q at the end φ of the inner loop.

    No graph of the inner steps is kept. With u = (H + λI)⁻¹ ∇L_Q by conjugate residuals, the scalar is
    L_Q(φ) − u · (∇L_S(φ) + λ(φ − θ)), where φ and u are constants.
    """
    factor, lr = plain.options.proximal, plain.adapters["sgd"].lr
    start = of(values, plain.weights)
    fast = leaves(start)
    for _ in range(plain.options.steps):
        grads = gradients(plain.loss(values | fast, task.support), fast, first_order=True)
        pulled = {n: g + factor * (fast[n].detach() - start[n].detach()) for n, g in grads.items()}
        fast = leaves(moved(fast, pulled, lr))
    slopes = gradients(plain.loss(values | fast, task.support), fast)
    slope = flat({name: g + factor * (fast[name] - start[name]) for name, g in slopes.items()})
    query = plain.loss(values | fast, task.query)
    wanted = torch.autograd.grad(query, list(fast.values()), retain_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(slope, list(fast.values()), vector, retain_graph=True)]
        )

    vector = torch.cat([g.flatten() for g in wanted])
    return query - conjugate_residuals(product, vector, plain.options.solver_steps) @ slope


def conjugate_residuals(product: Callable[[Tensor], Tensor], vector: Tensor, steps: int) -> Tensor:
    """Return an approximation of A⁻¹ v after some steps of conjugate residuals."""
    solution, residual, direction = torch.zeros_like(vector), vector, vector
    image = of_residual = product(residual)
    energy = residual @ of_residual
    for step in range(steps):
        length = energy / (image @ image)
        solution = solution + length * direction
        if step + 1 == steps:
            break
        residual = residual - length * image
        of_residual = product(residual)
        before, energy = energy, residual @ of_residual
        direction, image = residual + energy / before * direction, of_residual + energy / before * image
    return solution
