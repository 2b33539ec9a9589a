"""KFO: positive semi-definite factors, which the inner loop adapts by the gradient of the support loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params, Task
from metaforge_plugins.adapters.kfo import KFO, KFOOptions, transformed
from metaforge_plugins.learners.gradient.maml import MAML
from toys import (
    assert_equal_steps,
    assert_loss_has_its_gradient,
    fresh,
    learner,
    sgd,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
RATE = 0.3
WEIGHTS = {"vector": (3,), "dense": (2, 3), "sequence": (2, 3, 2), "image": (3, 2, 2, 1)}


def convolutional() -> nn.Module:
    """Return a network with a convolution."""
    return nn.Sequential(nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 3, (1, 2)), nn.Tanh(), nn.Flatten())


def built(adapt_factors: bool = True, **options: Any) -> Any:
    """Return MAML with KFO."""
    chain = {"kfo": KFO(KFOOptions(lr=RATE, adapt_factors=adapt_factors))}
    return learner(MAML, adapters=chain, **options)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("adapt_factors", "steps"), [(True, 1), (False, 3)])
@pytest.mark.parametrize("backbone", [smooth("batch"), convolutional])
def test_the_identity_is_plain_descent_to_the_bit(backbone: Any, adapt_factors: bool, steps: int) -> None:
    plain = learner(MAML, backbone=backbone, steps=steps, adapters=sgd(RATE).adapters)
    ours = built(adapt_factors, backbone=backbone, steps=steps)
    values = fresh(plain)
    first = {name: value.double() for name, value in ours.init(KEY).items() if name.startswith("adapters.")}
    one, two = step(plain, values, tasks(2)), step(ours, values | first, tasks(2))
    assert torch.equal(one.losses, two.losses)
    assert all(torch.equal(one.grads[name], two.grads[name]) for name in values)
    assert all(two.grads[name].any() for name in first)


@pytest.mark.parametrize("shape", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_map_is_a_kronecker_product_and_positive_semi_definite(shape: tuple[int, ...]) -> None:
    gradient = random(*shape)
    first = KFO(KFOOptions()).init({"w": gradient}, KEY)
    meta = {name: value + random(*value.shape, seed=1) for name, value in first.items()}
    left, right = (meta[f"{side}.w"].T @ meta[f"{side}.w"] for side in ("left", "right"))
    # All outputs of a kernel share the two factors.
    shared = torch.eye(shape[0] if len(shape) > 2 else 1, dtype=torch.float64)
    whole = torch.kron(shared, torch.kron(left, right))
    result = transformed(meta, "w", gradient)
    torch.testing.assert_close(result.flatten(), whole @ gradient.flatten(), rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(whole).min() > -1e-12
    assert (result * gradient).sum() > 0


def reference(values: Params, example: Task, steps: int) -> tuple[Tensor, Params]:
    """Return query loss and gradients of MAML with KFO on `smooth()`: the factors get their gradients by autograd."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    names = [name for name in leaves if name.startswith("model.")]
    factors = [leaves[f"adapters.kfo.{side}.{name}"] for name in names for side in ("left", "right")]
    derivative = partial(torch.autograd.grad, create_graph=True)

    def loss(w: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3], y)

    fast = [leaves[name] for name in names]
    for number in range(steps):
        support = loss(fast, *example.support)
        if number > 0:
            factors = [f - RATE * g for f, g in zip(factors, derivative(support, factors), strict=True)]
        gradients, moved = derivative(support, fast), []
        for w, g, left, right in zip(fast, gradients, factors[::2], factors[1::2], strict=True):
            matrix = g.reshape(len(g), -1)
            moved.append(w - RATE * (left.T @ left @ matrix @ right.T @ right).reshape(g.shape))
        fast = moved
    total = loss(fast, *example.query)
    return total, dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_equals_plain_autograd(steps: int) -> None:
    one, example = built(steps=steps), task()
    values = fresh(one)
    loss, expected = reference(values, example, steps)
    found, ours = torch.func.grad_and_value(lambda v: one.loss(v, example, KEY)[0])(values)
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_adapted_factors_change_the_second_step_alone() -> None:
    values, support = fresh(built()), task().support
    for steps, equal in ((1, True), (2, False)):
        one, two = (built(chosen).adapt(values, support, steps=steps)["model.0.0.weight"] for chosen in (True, False))
        assert torch.equal(one, two) is equal


@pytest.mark.parametrize("backbone", [smooth("batch"), convolutional])
def test_finite_differences(backbone: Any) -> None:
    assert_loss_has_its_gradient(built(backbone=backbone, steps=3))


@pytest.mark.parametrize("backbone", [smooth("batch"), convolutional])
@pytest.mark.parametrize("plan", ["vmap", "fold"])
def test_every_plan_gives_the_same(plan: str, backbone: Any) -> None:
    one = built(backbone=backbone, steps=3)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    assert_equal_steps(step(one, values, batch, plan), looped)
    assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
