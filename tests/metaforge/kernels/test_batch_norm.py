"""Batch norm with its derivatives written out: those of its primitives, to the third order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metaforge.authoring.protocols import Params
from metaforge.kernels.batch_norm import standardised

EPS = 1e-3
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def own(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return standardised(x, weight, bias, EPS)[0]


def primitive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dims, shape = (0, *range(2, x.dim())), (1, -1, *(1,) * (x.dim() - 2))
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) * (var + EPS).rsqrt() * weight.reshape(shape) + bias.reshape(shape)


def after_a_step(norm: Norm) -> Callable[[Params, Tensor], Tensor]:
    def loss(values: Params, x: Tensor) -> Tensor:
        hidden = norm(x + (x * values["shift"].reshape(1, -1, *(1,) * (x.dim() - 2))).tanh(), values["w"], values["b"])
        return norm(hidden.tanh(), values["b"], values["w"]).pow(3).mean()

    def after(values: Params, x: Tensor) -> Tensor:
        grads = grad(loss)(values, x)
        return loss({name: value - 0.3 * grads[name] for name, value in values.items()}, x.flip(0))

    return after


def drawn(shape: tuple[int, ...]) -> tuple[Params, Tensor]:
    draw = torch.Generator().manual_seed(0)
    names = ("w", "b", "shift")
    values = {name: torch.randn(shape[2], dtype=torch.float64, generator=draw) for name in names}
    return values, torch.randn(shape, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 5, 4, 2, 3)])
@pytest.mark.parametrize("plan", ["fold", "vmap"])
def test_the_derivatives_are_those_of_the_primitives(shape: tuple[int, ...], plan: str) -> None:
    values, x = drawn(shape)
    found = []
    for norm in (own, primitive):
        if plan == "vmap":
            grads = vmap(grad(after_a_step(norm)), in_dims=(None, 0))(values, x)
            found.append(list(grads.values()))
            continue
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        total = vmap(after_a_step(norm), in_dims=(None, 0))(leaves, x).sum()
        first = torch.autograd.grad(total, list(leaves.values()), create_graph=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
        found.append([*first, *third])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)


def test_the_statistics_are_told_and_are_constants() -> None:
    values, x = drawn((3, 5, 4, 2, 3))
    y, mean, var = standardised(x[0].requires_grad_(), values["w"], values["b"], EPS)
    torch.testing.assert_close(mean, x[0].mean((0, 2, 3)))
    torch.testing.assert_close(var, x[0].var((0, 2, 3), correction=0))
    assert (y.requires_grad, mean.requires_grad, var.requires_grad) == (True, False, False)
