"""Implicit differentiation of the solution of an equation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metaforge.kernels.implicit import (
    Solver,
    conjugate_gradients,
    conjugate_residuals,
    implicit_solution,
    neumann_series,
    relative_residual,
)

SOLVERS = {"cg": conjugate_gradients(4), "cr": conjugate_residuals(4), "neumann": neumann_series(400, 0.3)}


def matrix(scale: Tensor) -> Tensor:
    """Return a symmetric positive definite matrix `[3, 3]` that depends on `scale`."""
    base = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)
    return base + scale * torch.eye(3, dtype=torch.float64)


def equation(x: dict[str, Tensor], scale: Tensor, right: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Return A x - b + x^3, in two parts; it has a root x that depends on A and b, and an integer argument."""
    whole = torch.cat([x["first"], x["second"]])
    value = matrix(scale) @ whole - right + whole**3 + 0 * label
    return {"first": value[:1], "second": value[1:]}


def root(scale: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Return the root, found by Newton's method and detached."""
    x = torch.zeros_like(right)
    for _ in range(30):
        slope = matrix(scale) + torch.diag_embed(3 * x**2)
        x = x - torch.linalg.solve(slope, matrix(scale) @ x - right + x**3)
    x = x.detach()
    return {"first": x[:1], "second": x[1:]}


def of_root(scale: Tensor, right: Tensor, solver: Solver) -> Tensor:
    """Return a function of the root that depends on both of its parts."""
    x = implicit_solution(equation, root(scale, right), solver, scale, right, torch.tensor(2))
    return x["first"].sum() ** 2 + x["second"].sin().sum()


SCALE = torch.tensor(0.7, dtype=torch.float64)
RIGHT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_derivative_is_that_of_the_root(solver: Solver) -> None:
    by_scale, by_right = grad(of_root, (0, 1))(SCALE, RIGHT, solver)
    step = 1e-6

    def value(scale: Tensor, right: Tensor) -> Tensor:
        x = root(scale, right)
        return x["first"].sum() ** 2 + x["second"].sin().sum()

    wanted = (value(SCALE + step, RIGHT) - value(SCALE - step, RIGHT)) / (2 * step)
    torch.testing.assert_close(by_scale, wanted, rtol=1e-8, atol=1e-9)
    for index in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[index]
        wanted = (value(SCALE, RIGHT + shift) - value(SCALE, RIGHT - shift)) / (2 * step)
        torch.testing.assert_close(by_right[index], wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_it_works_under_vmap_and_grad_in_any_order(solver: Solver) -> None:
    scales = torch.tensor([0.7, 0.1, 2.0], dtype=torch.float64)
    one_by_one = torch.stack([grad(of_root)(scale, RIGHT, solver) for scale in scales])
    inside = vmap(grad(lambda scale: of_root(scale, RIGHT, solver)))(scales)
    outside = grad(lambda s: vmap(lambda scale: of_root(scale, RIGHT, solver))(s).sum())(scales)
    leaf = scales.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(vmap(lambda scale: of_root(scale, RIGHT, solver))(leaf).sum(), leaf)
    for result in (inside, outside, by_autograd):
        torch.testing.assert_close(result, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [conjugate_gradients, conjugate_residuals])
def test_conjugate_directions_are_exact_after_as_many_steps_as_there_are_unknowns(method: Any) -> None:
    a, v = matrix(SCALE), [RIGHT[:2], RIGHT[2:]]

    def product(vector: list[Tensor]) -> list[Tensor]:
        return list((a @ torch.cat(list(vector))).split([2, 1]))

    wanted = torch.linalg.solve(a, RIGHT)
    errors = [float((torch.cat(list(method(n)(product, v))) - wanted).norm()) for n in (1, 2, 3, 10)]
    assert errors[0] > errors[1] > 1e-3
    # Further steps keep the solution: there is no division by a residual of zero.
    assert max(errors[2:]) < 1e-14


@pytest.mark.parametrize("method", [conjugate_gradients, conjugate_residuals])
def test_a_gradient_of_zero_is_solved_by_zero(method: Any) -> None:
    solved = method(3)(lambda vector: vector, [torch.zeros(2)])
    assert torch.equal(solved[0], torch.zeros(2))


def indefinite(vector: Any) -> list[Tensor]:
    """Return the product with a diagonal matrix that has negative entries."""
    return [torch.tensor([4.0, 2.0, 1.0, -0.5, -3.0], dtype=torch.float64) * vector[0]]


def test_conjugate_residuals_never_leave_more_than_no_solution_at_all() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        v = [torch.randn(5, generator=draw, dtype=torch.float64)]
        left = [float(relative_residual(conjugate_residuals(n), indefinite, v)) for n in range(7)]
        assert left[0] == 1
        assert all(after <= before + 1e-9 for before, after in pairwise(left)), left
        assert left[5] < 1e-6


def test_conjugate_gradients_stop_at_a_direction_of_negative_curvature() -> None:
    v = [torch.tensor([1.0, 0.9, 0.8, 0.1, 0.01], dtype=torch.float64)]
    solutions = [conjugate_gradients(n)(indefinite, v)[0] for n in (1, 2, 3, 4, 5, 9)]
    # A plain solution in Krylov spaces of growing dimension: it is a descent direction while the curvature is positive.
    assert not torch.equal(solutions[0], solutions[1])
    assert all(torch.equal(one, solutions[-1]) for one in solutions[3:])
    assert all(float((one * v[0]).sum()) > 0 for one in solutions)
    along = [torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)]
    for steps in (1, 3):
        # Along v itself the curvature is negative: the multiple of v has the size of a solution.
        torch.testing.assert_close(conjugate_gradients(steps)(indefinite, along)[0], along[0] / 0.5)


def test_the_neumann_series_converges_geometrically() -> None:
    a = matrix(SCALE)
    wanted = torch.linalg.solve(a, RIGHT)
    errors = [
        float((neumann_series(n, 0.3)(lambda vector: [a @ vector[0]], [RIGHT])[0] - wanted).norm()) for n in (20, 40)
    ]
    rate = float((torch.eye(3, dtype=torch.float64) - 0.3 * a).abs().max())
    largest = float(torch.linalg.eigvalsh(torch.eye(3, dtype=torch.float64) - 0.3 * a).abs().max())
    assert errors[1] / errors[0] == pytest.approx(largest**20, rel=0.05), rate


def test_the_residual_tells_how_well_a_system_is_solved() -> None:
    def residual(solver: Solver, v: Tensor = RIGHT) -> float:
        return float(relative_residual(solver, lambda x: [matrix(SCALE) @ x[0]], [v]))

    assert residual(conjugate_gradients(3)) < 1e-12
    found = conjugate_gradients(1)(lambda x: [matrix(SCALE) @ x[0]], [RIGHT])[0]
    wanted = float((matrix(SCALE) @ found - RIGHT).norm() / RIGHT.norm())
    assert residual(conjugate_gradients(1)) == pytest.approx(wanted)
    assert wanted > 0.01
    # A series of this rate converges to A^-1, and one of a rate above 2 / 3.8 diverges.
    assert [residual(neumann_series(terms, 0.3)) < bound for terms, bound in ((5, 1), (100, 1e-10))] == [True, True]
    assert residual(neumann_series(5, 3.0)) > 1e3
    assert residual(conjugate_gradients(2), torch.zeros_like(RIGHT)) == 0
