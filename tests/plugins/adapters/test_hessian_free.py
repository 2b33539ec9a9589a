"""Hessian-free steps: Newton's method on quadratics, the line search, and constants for the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from metaforge.authoring.descent import Chain, descend
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import InnerStep, Params
from metaforge_plugins.adapters.hessian_free import HessianFree, HessianFreeOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from toys import POLICIES, THETA, A, H, assert_equal_steps, fresh, learner, quadratic, smooth, step, task, tasks

IDENTITY = torch.eye(2, dtype=torch.float64)


def chain(**options: object) -> Chain:
    """Return a chain of Hessian-free steps alone."""
    return Chain({"hessian-free": HessianFree(HessianFreeOptions.model_validate(options))})


def stepped(function: Callable[[Tensor], Tensor], start: Tensor, steps: int = 1, proximal: float = 0.0) -> Tensor:
    """Return where Hessian-free steps on a function lead."""

    def objective(values: Params, number: int) -> tuple[Tensor, Params]:
        return function(values["w"]), {}

    at = {"w": start}
    return descend(objective, at, at, chain(solver_steps=2), steps, proximal=proximal)[0]["w"]


def test_one_step_solves_a_quadratic_problem() -> None:
    torch.testing.assert_close(stepped(lambda w: quadratic(w, A), THETA), A, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pull", [0.5, 2.0, 100.0])
def test_the_proximal_term_belongs_to_the_objective(pull: float) -> None:
    wanted = torch.linalg.solve(H + pull * IDENTITY, H @ A + pull * THETA)
    torch.testing.assert_close(stepped(lambda w: quadratic(w, A), THETA, proximal=pull), wanted, rtol=1e-12, atol=1e-12)


def updated(function: Callable[[Params], Tensor], at: Tensor, **options: object) -> Tensor:
    """Return the update of one step on a function."""
    params = {"w": at}
    inner = InnerStep(0, function(params), function)
    update: Tensor = chain(**options).update({}, grad(function)(params), {}, params, inner)[0]["w"]
    return update


def test_damping_is_added_to_the_hessian() -> None:
    found = updated(lambda p: quadratic(p["w"], A), THETA, damping=3.0, solver_steps=2, sizes=(1.0,))
    torch.testing.assert_close(found, torch.linalg.solve(H + 3 * IDENTITY, H @ (THETA - A)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [0.4, 1.2, 1.6, 2.0, 2.3])
def test_the_line_search_takes_the_size_with_the_lowest_loss(start: float) -> None:
    # Newton steps on log cosh go beyond the minimum, and from 1.09 on they diverge.
    at, sizes = torch.tensor([start], dtype=torch.float64), (1.0, 0.5, 0.25, 0.125)
    newton = at.tanh() * at.cosh() ** 2
    losses = {size: float((at - size * newton).cosh().log()) for size in (0.0, *sizes)}
    best = min(losses, key=losses.__getitem__)
    found = updated(lambda p: p["w"].cosh().log().sum(), at, sizes=sizes)
    torch.testing.assert_close(found, best * newton, rtol=1e-9, atol=0)


def test_no_step_is_taken_if_each_size_raises_the_loss() -> None:
    assert not updated(lambda p: quadratic(p["w"], A), THETA, sizes=(3.0, 50.0)).any()


def test_a_concave_function_is_descended() -> None:
    assert quadratic(stepped(lambda w: -quadratic(w, A), THETA), A) > quadratic(THETA, A)


def test_the_steps_are_constants_for_the_meta_gradient() -> None:
    second, first = (learner(cls, adapters=chain(damping=1.0).adapters, steps=2) for cls in (MAML, FOMAML))
    values, example = fresh(second), task()
    found, expected = (grad(lambda v, b=b: b.loss(v, example, make_key(0))[0])(values) for b in (second, first))
    fast = second.adapt(values, example.support, steps=2)
    plain = grad(lambda v: second.criterion(second.model(v, example.query.x), example.query.y))(values | fast)
    for name in values:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[name], plain[name], rtol=1e-9, atol=1e-12)
    assert not second.tags.exact_meta_gradient


@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    adapters = chain(damping=2.0).adapters
    built = learner(MAML, backbone=smooth("batch"), adapters=adapters, steps=2, norm=norm, proximal=2.0)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "fold", chunk=3), looped)


def test_an_inner_step_without_an_objective_is_refused() -> None:
    with pytest.raises(AssertionError, match="no objective"):
        chain().update({}, {"w": THETA}, {}, {"w": THETA}, InnerStep(0, THETA.sum()))
