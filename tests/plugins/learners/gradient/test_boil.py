"""BOIL: the exact meta-gradient, against plain autograd, and a head that no task adapts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring import Examples, Params, Task, make_key
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.learners.gradient.boil import BOIL
from metaforge_plugins.learners.gradient.maml import MAML
from toys import POLICIES, assert_equal_steps, assert_loss_has_its_gradient, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)
RATE = 0.3
HEAD = {"model.2.weight", "model.2.bias"}


def one(example: Task) -> Task:
    """Return a batch of one task."""
    return Task(*(Examples(*(tensor[None] for tensor in part)) for part in example[:2]))


def by_hand(values: Params, example: Task, steps: int, first_order: bool) -> tuple[Tensor, Params]:
    """Return loss and meta-gradient, by plain autograd through steps on layer, batch norm and not the head."""
    v = {name: value.clone().requires_grad_() for name, value in values.items()}
    body = {name: value for name, value in v.items() if name not in HEAD}

    def loss(body: Params, examples: Examples) -> Tensor:
        z = F.linear(examples.x, body["model.0.0.weight"], body["model.0.0.bias"])
        z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
        features = torch.tanh(z * body["model.0.1.weight"] + body["model.0.1.bias"])
        return F.cross_entropy(F.linear(features, v["model.2.weight"], v["model.2.bias"]), examples.y)

    for _ in range(steps):
        grads = torch.autograd.grad(loss(body, example.support), list(body.values()), create_graph=True)
        updates = [g.detach() if first_order else g for g in grads]
        body = {name: value - RATE * update for (name, value), update in zip(body.items(), updates, strict=True)}
    result = loss(body, example.query)
    result.backward()
    return result.detach(), {name: value.grad for name, value in v.items() if value.grad is not None}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("adjoint", ["unroll", "first-order"])
def test_it_has_the_meta_gradient_of_plain_pytorch(adjoint: str, steps: int) -> None:
    built = learner(BOIL, backbone=smooth("batch"), steps=steps, adjoint=adjoint)
    values, example = fresh(built), task()
    found = step(built, values, one(example))
    loss, expected = by_hand(values, example, steps, adjoint == "first-order")
    torch.testing.assert_close(found.losses[0], loss, rtol=1e-11, atol=0)
    assert found.grads.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.grads[name], value, rtol=1e-9, atol=1e-12)
    assert all(found.grads[name].any() for name in HEAD)


@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(learner(BOIL, backbone=smooth("batch"), steps=3, norm=norm))


@pytest.mark.parametrize("norm", POLICIES)
def test_every_plan_has_the_numbers_of_the_loop(norm: str) -> None:
    built = learner(BOIL, backbone=smooth("batch"), steps=2, norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


def test_it_is_maml_whose_inner_rate_of_the_head_is_zero() -> None:
    rates = {"meta-sgd": MetaSGD(MetaSGDOptions(lr=RATE))}
    ours = learner(BOIL, backbone=smooth("batch"), steps=3)
    theirs = learner(MAML, backbone=smooth("batch"), steps=3, adapt="all", adapters=rates)
    values = fresh(ours)
    names = [name for name in theirs.init(KEY) if name.startswith("adapters.")]
    fixed = {n: torch.full_like(values[n.removeprefix("adapters.meta-sgd.rate.")], RATE) for n in names}
    fixed |= {n: torch.zeros_like(value) for n, value in fixed.items() if n.endswith((".2.weight", ".2.bias"))}
    found, expected = step(ours, values, tasks(3)), step(theirs, values | fixed, tasks(3))
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
    for name in values:
        torch.testing.assert_close(found.grads[name], expected.grads[name], rtol=1e-10, atol=1e-13)


def test_the_inner_loop_adapts_the_whole_body_and_not_the_head() -> None:
    built = learner(BOIL, backbone=smooth("batch"))
    fast = built.adapt(fresh(built), task().support, steps=2)
    assert set(fast) == {f"model.0.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert all(not torch.equal(fast[name], fresh(built)[name]) for name in fast if name != "model.0.0.bias")
    without_norms = learner(BOIL, backbone=smooth("batch"), adapt="body")
    assert set(without_norms.adapted) == {"model.0.0.weight", "model.0.0.bias"}
    some = learner(BOIL, backbone=smooth("batch"), adapt=["model.0.1.*"])
    assert set(some.adapted) == {"model.0.1.weight", "model.0.1.bias"}


@pytest.mark.parametrize("patterns", [["model.*"], ["model.0.*", "model.2.bias"]])
def test_patterns_of_the_head_are_refused(patterns: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"'model\.2\.\w+', a parameter of the head"):
        learner(BOIL, adapt=patterns)


def test_a_network_without_a_body_has_nothing_to_adapt() -> None:
    with pytest.raises(ConfigError, match=r"'model\.0\.\*' matches no value"):
        learner(BOIL, backbone=nn.Identity)


def test_without_steps_it_is_joint_training_to_the_bit() -> None:
    built = learner(BOIL, backbone=smooth("batch"), steps=0)
    values, example = fresh(built), task()

    def joint(v: Params) -> Tensor:
        return F.cross_entropy(built.model(v, example.query.x), example.query.y)

    found, expected = grad(lambda v: built.loss(v, example, KEY)[0])(values), grad(joint)(values)
    assert all(torch.equal(found[name], expected[name]) for name in values)
