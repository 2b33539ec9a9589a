"""iMAML: the solution of the proximal problem and its derivative, against closed forms, differences and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from memory import added_peak
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.adapters.hessian_free import HessianFree, HessianFreeOptions
from metaforge_plugins.learners.gradient.imaml import IMAML, IMAMLOptions
from metaforge_plugins.learners.gradient.maml import MAML
from toys import (
    POLICIES,
    THETA,
    A,
    B,
    H,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    close,
    fresh,
    learner,
    quadratic,
    sgd,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
# As many steps of conjugate gradients as the small networks have parameters make these Newton's steps.
NEWTON = {"hessian-free": HessianFree(HessianFreeOptions(solver_steps=31))}
SHORT = {"hessian-free": HessianFree(HessianFreeOptions(solver_steps=2, sizes=(1.0, 0.5)))}


class Quadratic:
    """iMAML on linear regression, whose support loss is ½ (θ − a)ᵀ H (θ − a), and query loss ½ (θ − b)ᵀ H (θ − b)."""

    def __init__(self, newton: bool = False, rate: float = 0.25, **options: Any) -> None:
        spec = TaskSpec("regression", (2,), 1, TaskShape(1, 2, 2))
        chosen = {"steps": 50, "test_steps": 50, "solver_steps": 2, "adapt": ["model.2.weight"]} | options
        adapter = HessianFree(HessianFreeOptions(solver_steps=2)) if newton else sgd(rate)
        self.built = IMAML(IMAMLOptions.model_validate(chosen), Parts(spec, nn.Identity, adapter))
        # With XᵀX = H, the mean squared error of the two examples is the quadratic form.
        x = torch.linalg.cholesky(H).T.contiguous()
        self.task = Task(*(Examples(x, (x @ centre).unsqueeze(1)) for centre in (A, B)))
        self.values = {"model.2.weight": THETA.unsqueeze(0), "model.2.bias": torch.zeros(1, dtype=torch.float64)}

    def solution(self, **options: Any) -> Tensor:
        """Return the adapted parameters."""
        return self.built.adapt(self.values, self.task.support, **options)["model.2.weight"].flatten()

    def gradient(self) -> Tensor:
        """Return the meta-gradient."""

        def loss(values: Params) -> Tensor:
            return self.built.loss(values, self.task, KEY)[0]

        return grad(loss)(self.values)["model.2.weight"].flatten()


@pytest.mark.parametrize("newton", [False, True])
def test_f1(newton: bool) -> None:
    # The inner optimiser is another one, and neither the solution nor its derivative changes.
    one = Quadratic(newton, **{"steps": 1, "test_steps": 1} if newton else {})
    close(one.solution(), 0.6052631578947368, -0.42105263157894735)
    close(one.gradient(), 0.063712, -2.675900)


@pytest.mark.parametrize("pull", [0.3, 2.0, 20.0])
def test_the_closed_forms_of_a_quadratic_problem(pull: float) -> None:
    one = Quadratic(newton=True, steps=2, test_steps=2, proximal=pull)
    identity = torch.eye(2, dtype=torch.float64)
    solution = torch.linalg.solve(H + pull * identity, H @ A + pull * THETA)
    torch.testing.assert_close(one.solution(), solution, rtol=1e-9, atol=1e-12)
    query = grad(quadratic)(solution, B)
    torch.testing.assert_close(one.gradient(), torch.linalg.solve(identity + H / pull, query), rtol=1e-9, atol=1e-12)


def test_with_a_large_factor_it_is_the_query_gradient_at_the_initialisation() -> None:
    one = Quadratic(newton=True, steps=1, proximal=1e8)
    torch.testing.assert_close(one.gradient(), grad(quadratic)(THETA, B), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["cg", "cr"])
def test_the_solver_is_exact_after_as_many_steps_as_there_are_parameters(solver: str) -> None:
    wanted = torch.tensor([0.063712, -2.675900], dtype=torch.float64)
    errors = [float((Quadratic(solver=solver, solver_steps=n).gradient() - wanted).norm()) for n in (1, 2, 5)]
    assert errors[0] > 0.1
    assert max(errors[1:]) < 2e-6


def test_an_evaluation_can_have_another_factor() -> None:
    as_trained, free = (Quadratic(test_proximal=factor) for factor in (None, 0.0))
    torch.testing.assert_close(as_trained.solution(), as_trained.solution(key=KEY))
    torch.testing.assert_close(free.solution(), A, rtol=1e-6, atol=1e-9)
    # With a key it is training.
    torch.testing.assert_close(free.solution(key=KEY), as_trained.solution())
    torch.testing.assert_close(free.gradient(), as_trained.gradient())


def dense_gradient(built: IMAML, values: Params, example: Task, pull: float) -> Params:
    """Return ∂L_Q(φ*)/∂θ with plain autograd: Newton's method with the dense Hessian, and a dense linear system."""
    names, theta = list(built.adapted), torch.cat([values[n].flatten() for n in built.adapted])
    others = {n: v.clone().requires_grad_() for n, v in values.items() if n not in names}

    def loss(phi: Tensor, part: Examples) -> Tensor:
        pieces = phi.split([values[n].numel() for n in names])
        own = {n: piece.reshape(values[n].shape) for n, piece in zip(names, pieces, strict=True)} | others
        output = torch.func.functional_call(
            built.model.module, {n.removeprefix("model."): v for n, v in own.items()}, part.x
        )
        return F.cross_entropy(output, part.y)

    def inner(phi: Tensor) -> Tensor:
        return loss(phi, example.support) + 0.5 * pull * (phi - theta).square().sum()

    phi = theta.clone()
    for _ in range(20):
        slope = torch.autograd.functional.jacobian(inner, phi)
        phi = phi - torch.linalg.solve(torch.autograd.functional.hessian(inner, phi), slope)
    phi = phi.detach().requires_grad_()
    query = torch.autograd.grad(loss(phi, example.query), [phi, *others.values()])
    solved = torch.linalg.solve(torch.autograd.functional.hessian(inner, phi), query[0])
    (slope,) = torch.autograd.grad(loss(phi, example.support), phi, create_graph=True)
    mixed = torch.autograd.grad(slope @ solved, list(others.values()))
    # The derivative of the slope by θ is −λ, and by the other values it is the mixed second derivative.
    parts = (pull * solved).split([values[n].numel() for n in names])
    result = {n: piece.reshape(values[n].shape) for n, piece in zip(names, parts, strict=True)}
    return result | {n: g - m for n, g, m in zip(others, query[1:], mixed, strict=True)}


@pytest.mark.parametrize("newton", [False, True])
def test_the_gradient_is_that_of_plain_autograd_with_a_dense_hessian(newton: bool) -> None:
    adapters: Any = NEWTON if newton else sgd(0.15).adapters
    options = {"steps": 6 if newton else 80, "proximal": 6.0, "solver_steps": 31}
    built = learner(IMAML, backbone=smooth("layer"), adapters=adapters, **options)
    values, example = fresh(built), task()
    found = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    expected = dense_gradient(built, values, example, 6.0)
    assert found.keys() == expected.keys()
    assert set(found) - set(built.adapted), "the parameters of the norm layer are not adapted"
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize(("norm", "adapt"), [("transductive", "weights"), ("support", "all"), ("running", "head")])
def test_finite_differences_at_convergence(norm: str, adapt: str) -> None:
    options = {"steps": 4, "proximal": 20.0, "solver_steps": 31, "norm": norm, "adapt": adapt}
    assert_loss_has_its_gradient(learner(IMAML, backbone=smooth("batch"), adapters=NEWTON, **options))


def test_the_path_there_has_no_influence_and_no_gradient() -> None:
    newton, descent = (
        learner(IMAML, adapters=adapters, steps=steps, solver_steps=31)
        for adapters, steps in ((NEWTON, 6), (sgd(0.3).adapters, 100))
    )
    values, example = fresh(newton), task()
    first, second = (grad(lambda v, b=b: b.loss(v, example, KEY)[0])(values) for b in (newton, descent))
    for name in values:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("adapters", [SHORT, sgd(0.1).adapters], ids=["hessian-free", "sgd"])
@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str, adapters: Any) -> None:
    built = learner(IMAML, backbone=smooth("batch"), adapters=adapters, steps=3, norm=norm, solver_residual=True)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "fold", chunk=3), looped)
    assert set(looped.metrics) == {"score", "inner_residual", "solver_residual"}


@pytest.mark.parametrize("adapters", [SHORT, sgd(0.1).adapters], ids=["hessian-free", "sgd"])
def test_memory_does_not_grow_with_the_inner_steps(adapters: Any) -> None:
    def peak(cls: type[Any], steps: int) -> int:
        built = learner(cls, backbone=smooth("batch"), adapters=adapters, steps=steps, proximal=2.0, solver_steps=2)
        values, batch = fresh(built), tasks(1, shots=200)
        return added_peak(lambda: step(built, values, batch, "fold"))

    assert peak(IMAML, 32) < 1.02 * peak(IMAML, 4)
    if adapters is not SHORT:  # Whose steps keep no graph with any learner.
        assert peak(MAML, 32) > 5 * peak(MAML, 4)


def test_it_tells_where_its_gradient_is_exact() -> None:
    body, head = learner(IMAML), learner(IMAML, adapt="head")
    assert (body.tags.exact_meta_gradient, body.tags.converges_at) == (False, 0)
    for built in (head, learner(IMAML, adapt="head", adapters=NEWTON)):
        assert (built.tags.exact_meta_gradient, built.tags.converges_at) == (True, 60)
    assert set(body.loss(fresh(body), task(), KEY)[1].metrics) == {"score", "inner_residual"}
    params, _ = split_state(fresh(head))
    assert_loss_has_its_gradient(learner(IMAML, adapt="head", steps=head.tags.converges_at, solver_steps=30))
    assert set(head.adapted) < set(params)


@pytest.mark.parametrize("option", [{"adjoint": "unroll"}, {"proximal": 0.0}, {"steps": 0}])
def test_what_is_not_imaml_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        IMAMLOptions.model_validate(option)
