"""Max pooling and ReLU have torch's values, and torch's derivatives to the third order, under `vmap` in both orders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from derivatives import ORDERS, Loss, after_an_inner_step, assert_equal_derivatives
from metaforge.authoring.protocols import Params
from metaforge.kernels.pooling import max_pool, relu

Function = Callable[[Tensor], Tensor]
PAIRS: dict[str, tuple[Function, Function]] = {
    "max pooling, windows of 2": (lambda x: max_pool(x, 2), lambda x: nn.functional.max_pool2d(x, 2)),
    "max pooling, windows of 3": (lambda x: max_pool(x, 3), lambda x: nn.functional.max_pool2d(x, 3)),
    "ReLU": (relu, torch.relu),
}


def adapted_loss(function: Function) -> Loss:
    """Return the loss after an inner step of a linear map of channels, the function, and another such map."""

    def loss(values: Params, x: Tensor) -> Tensor:
        hidden = function(torch.einsum("oi,nihw->nohw", values["first"], x))
        return torch.einsum("oi,nihw->nohw", values["second"], hidden.square()).pow(2).mean()

    return after_an_inner_step(loss, lr=0.1)


def images() -> Tensor:
    """Return images `[tasks, n, channels, 7, 6]` in which some windows have equal maxima."""
    x = torch.randn(3, 4, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, :, :, :4, :4] = 0.25
    return x


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PAIRS)
def test_their_derivatives_are_torchs(name: str, order: str) -> None:
    draw = torch.Generator().manual_seed(0)
    values = {n: torch.randn(3, i, dtype=torch.float64, generator=draw) for n, i in (("first", 2), ("second", 3))}
    ours, torchs = PAIRS[name]
    assert_equal_derivatives(adapted_loss(ours), adapted_loss(torchs), values, images(), order)


@pytest.mark.parametrize("name", PAIRS)
def test_their_values_are_torchs_also_where_an_entry_is_nan(name: str) -> None:
    ours, torchs = PAIRS[name]
    x = images()
    x[0, 0, 0, 1, 1] = float("nan")
    torch.testing.assert_close(vmap(ours)(x), torch.stack([torchs(each) for each in x]), equal_nan=True)
    assert vmap(ours)(x)[0, 0].isnan().any()


@pytest.mark.parametrize("name", PAIRS)
def test_their_gradients_at_zero_nan_and_equal_maxima_are_torchs(name: str) -> None:
    ours, torchs = PAIRS[name]
    x = images()[0].requires_grad_()
    with torch.no_grad():
        x[0, 0, 0, :2] = 0.0
        x[1, 0, 0, 0] = float("nan")
    grads = [torch.autograd.grad(function(x).sum(), x)[0] for function in (ours, torchs)]
    assert torch.equal(*grads)
