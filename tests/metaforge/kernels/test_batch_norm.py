"""Batch norm has the derivatives of the same norm composed of primitive operations, to the third order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from derivatives import ORDERS, Loss, after_an_inner_step, assert_equal_derivatives
from metaforge.authoring.protocols import Params
from metaforge.kernels.batch_norm import _suits_native_backward, batch_norm

EPS = 1e-3
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm(x, weight, bias, EPS)[0]


def primitive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dims, shape = (0, *range(2, x.dim())), (1, -1, *(1,) * (x.dim() - 2))
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) * (var + EPS).rsqrt() * weight.reshape(shape) + bias.reshape(shape)


def adapted_loss(norm: Norm) -> Loss:
    """Return the loss of two norm layers after an inner step; the input of the first depends on a parameter too."""

    def loss(values: Params, x: Tensor) -> Tensor:
        hidden = norm(x + (x * values["shift"].reshape(1, -1, *(1,) * (x.dim() - 2))).tanh(), values["w"], values["b"])
        return norm(hidden.tanh(), values["b"], values["w"]).pow(3).mean()

    return after_an_inner_step(loss)


def drawn(shape: tuple[int, ...]) -> tuple[Params, Tensor]:
    """Return random parameters, and the inputs of a batch of tasks of that shape `[tasks, n, features, ...]`."""
    draw = torch.Generator().manual_seed(0)
    names = ("w", "b", "shift")
    values = {name: torch.randn(shape[2], dtype=torch.float64, generator=draw) for name in names}
    return values, torch.randn(shape, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 5, 4, 2, 3)])
@pytest.mark.parametrize("order", ORDERS)
def test_its_derivatives_are_those_of_primitive_operations(shape: tuple[int, ...], order: str) -> None:
    values, x = drawn(shape)
    assert_equal_derivatives(adapted_loss(kernel), adapted_loss(primitive), values, x, order)


def test_it_returns_the_statistics_as_constants() -> None:
    values, x = drawn((3, 5, 4, 2, 3))
    y, mean, var = batch_norm(x[0].requires_grad_(), values["w"], values["b"], EPS)
    torch.testing.assert_close(mean, x[0].mean((0, 2, 3)))
    torch.testing.assert_close(var, x[0].var((0, 2, 3), correction=0))
    assert (y.requires_grad, mean.requires_grad, var.requires_grad) == (True, False, False)


def test_its_values_are_torchs() -> None:
    values, x = drawn((3, 5, 4, 2, 3))
    expected = torch.nn.functional.batch_norm(x[0], None, None, values["w"], values["b"], training=True, eps=EPS)
    torch.testing.assert_close(kernel(x[0], values["w"], values["b"]), expected)


def test_the_first_derivatives_are_equal_in_every_memory_format() -> None:
    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=draw) for _ in range(2))
    w, b = (torch.randn(3, dtype=torch.float64, generator=draw) for _ in range(2))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [x.contiguous(memory_format=layout).requires_grad_(), w.clone().requires_grad_(), b.requires_grad_()]
        assert _suits_native_backward(dy.contiguous(memory_format=layout), *leaves[:2]) is (
            layout is torch.contiguous_format
        )
        results.append(torch.autograd.grad(kernel(*leaves), leaves, dy.contiguous(memory_format=layout)))
    for native, formula in zip(*results, strict=True):
        torch.testing.assert_close(native, formula, rtol=1e-12, atol=1e-14)
