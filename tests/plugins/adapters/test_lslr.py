"""LSLR: a rate for every parameter tensor and inner step, free in sign, with the gradients of the closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.descent import Adjoint, Chain, descend
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import GradientTransform, InnerStep, Params
from metaforge.registry.scan import scan
from metaforge_plugins.adapters.lslr import LSLR, LSLROptions
from metaforge_plugins.learners.gradient.maml import MAML
from toys import (
    THETA,
    A,
    B,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    close,
    fresh,
    inner_step,
    learner,
    quadratic,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


class Curvature(GradientTransform):
    """Multiplies the gradient by a fixed matrix, as Meta-Curvature by a learned one."""

    matrix = torch.tensor([[1.0, 0.5], [-0.25, 2.0]], dtype=torch.float64)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: self.scale * self.matrix @ g for name, g in grads.items()}, state


def query_loss(rates: Tensor, chain: Chain, steps: int, adjoint: str = "unroll") -> Tensor:
    """Return the query loss of fixture F1 after inner steps with these rates."""
    values = {"w": THETA, "adapters.lslr.rate.w": rates}

    def objective(v: Params, step: int) -> tuple[Tensor, Params]:
        return quadratic(v["w"], A), {}

    how = Adjoint(adjoint)
    return quadratic(descend(objective, values, {"w": THETA}, chain, steps, adjoint=how)[0]["w"], B)


def rates(*numbers: float) -> Tensor:
    """Return rates in float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def test_there_is_one_rate_per_tensor_and_step() -> None:
    params = {"w": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(2)}
    made = LSLR(LSLROptions(steps=4, lr=0.25)).init(params, KEY)
    assert {name: (rate.shape, rate.dtype) for name, rate in made.items()} == {
        "rate.w": ((4,), torch.float64),
        "rate.b": ((4,), torch.float32),
    }
    assert all((rate == 0.25).all() for rate in made.values())


def test_each_step_has_its_rate_and_the_last_serves_for_further_steps() -> None:
    meta = {"rate.w": rates(0.1, -0.2), "rate.b": rates(1.0, 2.0)}
    gradients = {"w": THETA, "b": THETA}
    adapter = LSLR(LSLROptions(steps=2))
    found = [adapter.update(meta, gradients, {}, {}, inner_step(number))[0] for number in range(4)]
    for updates, (w, b) in zip(found, [(0.1, 1.0), (-0.2, 2.0), (-0.2, 2.0), (-0.2, 2.0)], strict=True):
        assert torch.equal(updates["w"], w * THETA)
        assert torch.equal(updates["b"], b * THETA)


def test_f1_gradients_of_the_rates() -> None:
    chain = Chain({"lslr": LSLR(LSLROptions(steps=2))})
    close(grad(query_loss)(rates(0.1, 0.1), chain, 2), 14.2625, 14.2625)
    # The first step's does not depend on whether the step is differentiated.
    for adjoint in ("unroll", "first-order"):
        close(grad(query_loss)(rates(0.1, 0.1), chain, 1, adjoint), 18.96875, 0.0)


def test_after_a_preconditioner_it_scales_the_preconditioned_gradient() -> None:
    chain = Chain({"curvature": Curvature(), "lslr": LSLR(LSLROptions(steps=1))})
    support, query = (
        grad(quadratic)(THETA, A),
        grad(quadratic)(THETA - 0.1 * Curvature.matrix @ grad(quadratic)(THETA, A), B),
    )
    expected = -(Curvature.matrix @ support) @ query
    close(grad(query_loss)(rates(0.1), chain, 1), float(expected), rtol=1e-12)
    # The rates and the scale of the matrix are the same freedom: (a c, M / c) gives the same parameters.
    scaled = Chain({"curvature": Curvature(0.25), "lslr": LSLR(LSLROptions(steps=1))})
    close(query_loss(rates(0.4), scaled, 3), float(query_loss(rates(0.1), chain, 3)), rtol=1e-12)


def test_weight_and_bias_have_the_gradients_of_their_own_tensors() -> None:
    built = learner(MAML, steps=1, adapters={"lslr": LSLR(LSLROptions(steps=1, lr=0.3))})
    values, example = fresh(built), task()

    def plain(v: Params, part: int) -> Tensor:
        return F.cross_entropy(built.model(v, example[part].x), example[part].y)

    support = grad(plain)(values, 0)
    query = grad(plain)(values | built.adapt(values, example.support, key=KEY), 1)
    found = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    for name in built.adapted:
        expected = -(support[name] * query[name]).sum().reshape(1)
        torch.testing.assert_close(found[f"adapters.lslr.rate.{name}"], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("norm", ["transductive", "support"])
def test_every_plan_gives_the_same_and_the_gradient_is_exact(norm: str) -> None:
    adapters = {"lslr": LSLR(LSLROptions(steps=2, lr=0.3))}
    built = learner(MAML, backbone=smooth("batch"), adapters=adapters, steps=3, norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)
    assert_loss_has_its_gradient(built)


def test_suggested_rates_are_for_as_many_steps_as_are_suggested() -> None:
    for settings in scan().load("adapter", "lslr").defaults.values():
        assert settings["adapters"]["lslr"]["steps"] == settings["learner"]["steps"]
