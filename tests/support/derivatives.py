"""Derivatives of a loss to the third order, by plain autograd and under `vmap` in both orders of the transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vmap

from metaforge.authoring.protocols import Params

Loss = Callable[[Params, Tensor], Tensor]
Scalar = Callable[[Params], Tensor]

ORDERS = ("vmap(grad)", "grad(vmap)")


def after_an_inner_step(loss: Loss, lr: float = 0.3) -> Loss:
    """Return the loss of a task after one inner step, whose adapted values differ from task to task."""

    def adapted_loss(values: Params, x: Tensor) -> Tensor:
        grads = grad(loss)(values, x)
        return loss({name: value - lr * grads[name] for name, value in values.items()}, x.flip(0))

    return adapted_loss


def derivatives(function: Scalar, values: Params) -> list[Tensor]:
    """Return the gradient of a function, and the gradient of its squared norm, name by name.

    Of a loss after an inner step these are second and third derivatives of the loss.
    """

    def squared_norm(v: Params) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(function)(v).values()]).sum()

    return [g for f in (function, squared_norm) for g in grad(f)(values).values()]


def assert_equal_derivatives(ours: Loss, torchs: Loss, values: Params, tasks: Tensor, order: str) -> None:
    """Fail unless a loss `ours` under `vmap` has the derivatives of the loss `torchs` without `vmap`, task by task."""
    if order == "vmap(grad)":
        actual = vmap(lambda x: derivatives(lambda v: ours(v, x), values))(tasks)
        per_task = [derivatives(partial(torchs, x=x), values) for x in tasks]
        expected = [torch.stack(grads) for grads in zip(*per_task, strict=True)]
    else:
        actual = derivatives(lambda v: vmap(ours, in_dims=(None, 0))(v, tasks).sum(), values)
        expected = derivatives(lambda v: torch.stack([torchs(v, x) for x in tasks]).sum(), values)
    for one, two in zip(actual, expected, strict=True):
        assert two.abs().max() > 1e-6, "a derivative of zero proves nothing"
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)
