"""Image layers with channels-last kernels: the values and derivatives of torch's layers, to the third order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metaforge.authoring.layers import images
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.exchange import exchange_layers, replacement
from metaforge.authoring.protocols import Params
from metaforge.engine.compiler import Compiler
from metaforge.system import machine

TASKS = 3


def network(stride: int = 1, padding: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=stride, padding=padding, dilation=dilation, groups=groups),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(4, 2, 3, padding=1, groups=groups, bias=False),
        ).double()


def exchanged(module: nn.Sequential) -> nn.Sequential:
    layers = [replacement(layer) for layer in module]
    assert all(layer is not None for layer in layers)
    return nn.Sequential(*layers)  # type: ignore[arg-type]


def adapted_loss(module: nn.Module, *, steps: int = 2) -> Callable[[Params, Tensor], Tensor]:
    """Return the loss of a task after some inner steps, which a meta-gradient differentiates a second time."""

    def loss(values: Params, x: Tensor) -> Tensor:
        return functional_call(module, values, (x,)).pow(3).mean()

    def after(values: Params, x: Tensor) -> Tensor:
        for _ in range(steps):
            grads = grad(loss)(values, x)
            values = {name: value - 0.5 * grads[name] for name, value in values.items()}
        return loss(values, x.flip(0))

    return after


def pictures(seed: int = 1) -> Tensor:
    x = torch.randn(TASKS, 5, 2, 13, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # Equal entries in a window: the first is the greatest.
    x[:, :, :, :4, :4] = 0.25
    return x


def folded_grads(module: nn.Module, x: Tensor, *, again: bool = False) -> list[Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    losses = vmap(adapted_loss(module), in_dims=(None, 0))(leaves, x)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=again)
    if again:
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), list(leaves.values())))
    return list(grads)


def looped_grads(module: nn.Module, x: Tensor, *, again: bool = False, steps: int = 2) -> list[Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    total = sum((adapted_loss(module, steps=steps)(leaves, one) for one in x), torch.zeros(()))
    grads = torch.autograd.grad(total, list(leaves.values()), create_graph=again)
    if again:
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), list(leaves.values())))
    return list(grads)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2}, {"padding": 0, "dilation": 2}, {"groups": 2, "stride": 2, "padding": 2}]
)
def test_the_derivatives_are_torchs(geometry: dict[str, int], again: bool) -> None:
    reference = looped_grads(network(**geometry), pictures(), again=again)
    with images.channels_last_kernels():
        found = folded_grads(exchanged(network(**geometry)), pictures(), again=again)
    for one, two in zip(found, reference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_per_task_gradients_are_torchs() -> None:
    module, x = exchanged(network(stride=2)), pictures()
    values = {name: value.detach() for name, value in module.named_parameters()}
    with images.channels_last_kernels():
        found = vmap(grad(adapted_loss(module)), in_dims=(None, 0))(values, x)
    plain = network(stride=2)
    for index in range(TASKS):
        for name, value in grad(adapted_loss(plain))(values, x[index]).items():
            torch.testing.assert_close(found[name][index], value, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not machine.has_compiler(), reason="there is no C++ compiler: install g++")
def test_a_compiled_step_uses_them_and_is_exact() -> None:
    module, x = exchanged(network()), pictures()
    values = {name: value.detach() for name, value in module.named_parameters()}

    def step(values: Params, x: Tensor) -> Params:
        # One inner step has all derivatives of two; a second one would only double the code to compile.
        found = vmap(grad(adapted_loss(module, steps=1)), in_dims=(None, 0))(values, x)
        return {name: value.sum(0) for name, value in found.items()}

    found, reference = Compiler(step)(values, x), looped_grads(network(), x, steps=1)
    for one, two in zip(found.values(), reference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_outside_the_layers_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    for name in ("convolution", "max_pool", "relu"):
        monkeypatch.setattr(images, name, never)
    module, x = network(), pictures()[0]
    torch.testing.assert_close(exchanged(module)(x), module(x), rtol=0, atol=0)
    with images.channels_last_kernels(), pytest.raises(AssertionError):
        exchanged(module)(x)


def test_at_once_they_are_for_networks_that_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("convolution", "max_pool", "relu"):
        original = getattr(images, name)
        monkeypatch.setattr(images, name, lambda *a, name=name, f=original: (used.append(name), f(*a))[1])
    strided = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2)).double()
    for module, wanted in ((network(), ["convolution", "max_pool", "convolution"]), (strided, [])):
        used.clear()
        with images.channels_last_kernels("pooled"):
            exchange_layers(module, ForwardContext("transductive"))(pictures()[0])
        assert used == wanted
