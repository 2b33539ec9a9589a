"""Learned loss: it starts as MAML, and its gradients are those of a loss network in the inner loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Kind, Params, Task
from metaforge_plugins.learners.gradient.learned_loss import LearnedLoss
from metaforge_plugins.learners.gradient.maml import MAML
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
RATE = 0.3
WIDTHS = (6, 5)


def built(**options: Any) -> Any:
    """Return a learner with a small loss network."""
    return learner(LearnedLoss, **{"widths": WIDTHS, **options})


def strong(one: Any) -> Params:
    """Return random values whose loss network is far from zero."""
    values = fresh(one)
    draw = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(value.shape, generator=draw, dtype=value.dtype) if name.startswith("loss.") else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_it_starts_as_maml_to_the_bit(kind: Kind) -> None:
    plain, ours = learner(MAML, kind=kind, steps=2), built(kind=kind, steps=2)
    values = fresh(plain)
    network = {name: value.double() for name, value in ours.init(KEY).items() if name.startswith("loss.")}
    one, two = step(plain, values, tasks(2, kind)), step(ours, values | network, tasks(2, kind))
    assert torch.equal(one.losses, two.losses)
    assert all(torch.equal(one.grads[name], two.grads[name]) for name in values)
    assert two.grads["loss.2"].any()


def test_without_the_task_loss_no_layer_starts_at_zero() -> None:
    first = {name: value for name, value in built(task_loss=0.0).init(KEY).items() if name.startswith("loss.")}
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "loss.0": (6, 2),
        "loss.1": (5, 6),
        "loss.2": (1, 5),
    }
    assert all(value.abs().max() <= (6 / sum(value.shape)) ** 0.5 and value.std() > 0.1 for value in first.values())


def test_no_class_is_special() -> None:
    one, example = built(task_loss=0.0), task()
    values = strong(one)
    prediction = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    permuted = one.learned_loss(values, prediction[:, order], order.argsort()[example.support.y])
    torch.testing.assert_close(permuted, one.learned_loss(values, prediction, example.support.y))


def reference(values: Params, example: Task, kind: str, weight: float, steps: int) -> tuple[Tensor, Params]:
    """Return query loss and gradients with a learned loss on `smooth()`, in plain autograd."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    names = [name for name in leaves if name.startswith("model.")]
    known = F.cross_entropy if kind == "classification" else F.mse_loss

    def forward(w: list[Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]

    def learned(prediction: Tensor, y: Tensor) -> Tensor:
        if kind == "classification":
            prediction, y = prediction.log_softmax(-1), F.one_hot(y, 3).double()
        pairs = torch.stack([prediction.flatten(), y.flatten()], 1)
        hidden = (((pairs @ leaves["loss.0"].T).relu()) @ leaves["loss.1"].T).relu()
        return torch.log1p((hidden @ leaves["loss.2"].T).exp()).mean()

    fast = [leaves[name] for name in names]
    for _ in range(steps):
        prediction = forward(fast, example.support.x)
        loss = weight * known(prediction, example.support.y) + learned(prediction, example.support.y)
        gradients = torch.autograd.grad(loss, fast, create_graph=True)
        fast = [w - RATE * g for w, g in zip(fast, gradients, strict=True)]
    total = known(forward(fast, example.query.x), example.query.y)
    return total, dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_it_equals_plain_autograd(kind: Kind, weight: float) -> None:
    one, example = built(kind=kind, task_loss=weight, steps=2), task(kind=kind)
    values = strong(one)
    loss, expected = reference(values, example, kind, weight, steps=2)
    found, ours = torch.func.grad_and_value(lambda v: one.loss(v, example, KEY)[0])(values)
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=1e-12)
    for name, value in expected.items():
        assert value.any()
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(built(backbone=smooth("batch"), steps=2, norm=norm))


@pytest.mark.parametrize("kind", ["regression", "multi-label"])
def test_finite_differences_of_other_kinds(kind: Kind) -> None:
    assert_loss_has_its_gradient(built(kind=kind, steps=2, task_loss=0.1), kind=kind)


@pytest.mark.parametrize("learn", ["all", "loss"])
@pytest.mark.parametrize("plan", ["vmap", "fold"])
def test_every_plan_gives_the_same(plan: str, learn: str) -> None:
    one = built(backbone=smooth("batch"), steps=2, learn=learn)
    values, batch = strong(one), tasks(4)
    looped = step(one, values, batch)
    assert_equal_steps(step(one, values, batch, plan), looped)
    assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score"}


def test_the_loss_alone_can_be_learned() -> None:
    both, alone, example = built(steps=2), built(steps=2, learn="loss"), task()
    params, state = split_state(strong(both))
    one, two = (grad(lambda p, b=b: b.loss(p | state, example, KEY)[0])(params) for b in (both, alone))
    for name in params:
        if name in both.adapted:
            assert one[name].any()
            assert not two[name].any()
        else:
            assert torch.equal(one[name], two[name])
    assert (both.tags.exact_meta_gradient, alone.tags.exact_meta_gradient) == (True, False)
