"""Networks in float64, and their comparison with plain PyTorch, for tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaforge.authoring import Model, Pass, make_key
from metaforge.authoring.functional import split_state
from metaforge.authoring.network import seeded

TRAINING = Pass(make_key(1), 0, "support")


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network in float64 whose weights, biases and scales are drawn from a seed."""
    with seeded(make_key(0)):
        network = build().double()
        for value in network.parameters():
            value.data += 0.1 * torch.randn_like(value)
    return network


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal_to_plain(network: nn.Module, x: Tensor, **options: Any) -> Model:
    """Assert that loss and gradient in training equal those of a copy of the module itself, twice over."""
    model = Model(lambda: network, **options)
    values = model.init(make_key(0))
    params, state = split_state(values)
    native = copy.deepcopy(network)
    trained = {name: value for name, value in native.named_parameters() if value.requires_grad}
    assert {f"model.{name}" for name in trained} == params.keys()
    expected = native(x).square().mean()
    expected_grads = torch.autograd.grad(expected, list(trained.values()))
    for _ in range(2):
        grads, loss = torch.func.grad_and_value(lambda p: model(p | state, x, TRAINING).square().mean())(params)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        for name, grad in zip(trained, expected_grads, strict=True):
            torch.testing.assert_close(grads[f"model.{name}"], grad, rtol=1e-9, atol=1e-12)
    return model


class Growing(nn.Module):
    """Counts its calls in an attribute, so no two calls are equal: it is no pure function."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls
