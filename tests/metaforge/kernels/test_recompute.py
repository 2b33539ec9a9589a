"""Gradient checkpointing changes no value and no derivative, and keeps no activations for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad

from derivatives import ORDERS, after_an_inner_step, assert_equal_derivatives
from metaforge.authoring.protocols import Params
from metaforge.kernels.recompute import recompute_in_backward


def loss(values: Params, x: Tensor) -> Tensor:
    return ((x @ values["w"]).tanh() @ values["v"]).pow(3).mean()


def layer(values: Params, x: Tensor, rows: Tensor) -> dict[str, Tensor]:
    return {"features": (x[rows] @ values["w"]).tanh()}


def checkpointed(values: Params, x: Tensor) -> Tensor:
    """Return the same loss, its hidden layer recomputed; one of the arguments holds integers."""
    hidden = recompute_in_backward(layer, values, x, torch.arange(len(x)))["features"]
    return (hidden @ values["v"]).pow(3).mean()


def inner_step(values: Params, x: Tensor) -> Params:
    grads = grad(loss)(values, x)
    return {name: value - 0.3 * grads[name] for name, value in values.items()}


def checkpointed_inner_step(values: Params, x: Tensor) -> Tensor:
    """Return the loss after an inner step that is recomputed as a whole, its gradient included."""
    return loss(recompute_in_backward(inner_step, values, x), x.flip(0))


def drawn() -> tuple[Params, Tensor]:
    draw = torch.Generator().manual_seed(0)
    values = {n: torch.randn(s, dtype=torch.float64, generator=draw) for n, s in (("w", (3, 4)), ("v", (4, 2)))}
    return values, torch.randn(3, 5, 3, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("order", ORDERS)
def test_its_derivatives_are_those_of_the_function(order: str) -> None:
    values, x = drawn()
    assert_equal_derivatives(after_an_inner_step(checkpointed), after_an_inner_step(loss), values, x, order)


@pytest.mark.parametrize("order", ORDERS)
def test_a_function_that_takes_gradients_can_be_recomputed(order: str) -> None:
    values, x = drawn()
    assert_equal_derivatives(checkpointed_inner_step, after_an_inner_step(loss), values, x, order)


def test_the_function_runs_again_in_the_backward_pass_and_keeps_only_its_arguments() -> None:
    values, x = drawn()
    leaf, calls, saved = values["w"].requires_grad_(), [], []

    def twice_tanh(w: Tensor) -> Tensor:
        calls.append(1)
        return (x[0] @ w).tanh().tanh()

    def kept(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        total = recompute_in_backward(twice_tanh, leaf).sum()
    assert (len(calls), saved) == (1, [leaf.shape])
    total.backward()
    assert len(calls) == 2


def step_with_state(values: Params, x: Tensor, state: Params) -> tuple[Params, Params]:
    """Return values after an inner step, and its state: a rate as it was given, twice, and a count of the steps."""
    grads = grad(loss)(values, x)
    after = {name: value - state["rate"] * grads[name] for name, value in values.items()}
    return after, {"rate": state["rate"], "count": state["count"] + 1, "again": state["rate"]}


@pytest.mark.parametrize("order", ORDERS)
def test_an_input_may_be_returned_as_it_is_and_an_output_may_be_an_integer(order: str) -> None:
    values, x = drawn()

    def after(call: Callable[..., tuple[Params, Params]]) -> Callable[[Params, Tensor], Tensor]:
        def total(values: Params, x: Tensor) -> Tensor:
            state = {"rate": values["v"].square().mean(), "count": torch.tensor(1)}
            for _ in range(2):
                values, state = call(values, x, {name: state[name] for name in ("rate", "count")})
            return loss(values, x.flip(0)) * state["again"] * state["count"]

        return total

    recomputed = partial(recompute_in_backward, step_with_state)
    assert_equal_derivatives(after(recomputed), after(step_with_state), values, x, order)
