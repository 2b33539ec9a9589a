"""MetaOptNet: the conditions of an optimum, another solver's solution, and the derivative of the solution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.closed_form.metaopt_svm import MetaOptSVM
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    double,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


def identity(ways: int = 3, features: int = 5, **options: Any) -> MetaOptSVM:
    """Return a support vector machine on the inputs themselves: the network does nothing."""
    spec = TaskSpec("classification", (features,), ways, TaskShape(ways, 1, 1))
    return MetaOptSVM(MetaOptSVM.Config(**options), Parts(spec, nn.Identity))


def examples(ways: int, shots: int, features: int, size: float = 1.0, seed: int = 0) -> Examples:
    x = torch.randn(ways * shots, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Examples(size * x, torch.arange(ways).repeat(shots))


def projected(points: Tensor, upper: Tensor) -> Tensor:
    """Return the nearest points of rows whose sum is 0 and whose entries are at most `upper`, by bisection."""
    low, high = (points.detach() - upper).amin(1) - 100, points.detach().amax(1) + 100
    # An interval of 200 is halved to less than float64 resolves.
    for _ in range(64):
        middle = (low + high) / 2
        above = torch.minimum(points.detach() - middle[:, None], upper).sum(1) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    # The same number as a formula of the points, which has a derivative.
    free = points.detach() - middle[:, None] < upper
    middle = torch.where(free, points, upper).sum(1) / free.sum(1)
    return torch.minimum(points - middle[:, None], upper)


def slow_solution(support: Examples, ways: int, cost: float, ridge: float) -> Tensor:
    """Return W by many steps of projected gradient descent on the dual problem, in plain PyTorch."""
    own = F.one_hot(support.y, ways).double()
    gram = support.x @ support.x.T + ridge * torch.eye(len(own)).double()
    alpha, rate = torch.zeros_like(own), 1 / torch.linalg.eigvalsh(gram)[-1]
    for _ in range(3000):
        alpha = projected(alpha - rate * (gram @ alpha - own), cost * own)
    return support.x.T @ alpha


@pytest.mark.parametrize(("ways", "shots", "cost", "size"), [(3, 2, 0.1, 2.0), (5, 1, 0.1, 1.0), (2, 5, 0.02, 1.0)])
def test_the_solution_is_that_of_projected_gradient_descent(ways: int, shots: int, cost: float, size: float) -> None:
    support = examples(ways, shots, 5, size)
    found, violation = identity(ways, cost=cost).solve(support.x, support.y)
    torch.testing.assert_close(found, slow_solution(support, ways, cost, 1.0), rtol=1e-8, atol=1e-9)
    assert violation < 1e-12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ways", "shots", "cost", "ridge", "size"), [(5, 5, 0.1, 1.0, 5.0), (10, 1, 0.1, 1.0, 3.0), (5, 3, 1.0, 0.1, 3.0)]
)
def test_the_conditions_of_an_optimum_hold(
    ways: int, shots: int, cost: float, ridge: float, size: float, seed: int
) -> None:
    support = examples(ways, shots, 16, size, seed)
    _, violation = identity(ways, 16, cost=cost, ridge=ridge).solve(support.x, support.y)
    assert violation < 1e-9


def test_too_few_iterations_show_in_the_violation() -> None:
    support = examples(5, 5, 16, 5.0)
    assert identity(5, 16, iterations=3).solve(support.x, support.y)[1] > 1e-3


def test_a_high_price_separates_the_classes_with_the_margin() -> None:
    """Every training example has the score of its own class at least 1 above all others, as without slack."""
    support = examples(3, 2, 8)
    weights = identity(3, 8, cost=1e3, ridge=1e-6, iterations=60).solve(support.x, support.y)[0]
    scores, own = support.x @ weights, F.one_hot(support.y, 3).bool()
    margins = scores[own] - scores.masked_fill(own, -torch.inf).amax(1)
    torch.testing.assert_close(margins.min(), torch.tensor(1.0).double(), rtol=0, atol=1e-4)


def test_the_solution_of_float32_features_is_computed_in_float64() -> None:
    support = examples(5, 1, 16, 3.0)
    exact = identity(5, 16).solve(support.x, support.y)[0]
    found = identity(5, 16).solve(support.x.float(), support.y)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost", [0.1, 0.5])
def test_the_derivative_of_the_solution_agrees_with_finite_differences(cost: float) -> None:
    """At 0.1 most coefficients are at their bounds, at 0.5 few."""
    support, built = examples(3, 2, 4, 2.0), identity(3, 4, cost=cost)
    x = support.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda at: built.solve(at, support.y)[0], x, atol=1e-7, rtol=1e-6)


def test_the_gradient_is_that_of_a_differentiated_long_descent() -> None:
    """The independent reference unrolls projected gradient descent, whose derivative converges to that of its limit."""
    built = learner(MetaOptSVM, backbone=lambda: nn.Linear(3, 4))
    leaves = {name: value.requires_grad_() for name, value in fresh(built).items()}
    example = task(1)
    ours = torch.autograd.grad(built.loss(leaves, example, KEY)[0], [*leaves.values()])
    s, q = (t @ leaves["model.weight"].T + leaves["model.bias"] for t in (example.support.x, example.query.x))
    weights = slow_solution(Examples(s, example.support.y), 3, 0.1, 1.0)
    theirs = torch.autograd.grad(F.cross_entropy(leaves["scale"] * (q @ weights), example.query.y), [*leaves.values()])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(learner(MetaOptSVM, backbone=smooth("batch"), norm=norm))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(MetaOptSVM, backbone=smooth("batch"), norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


def test_other_labels_permute_the_logits_and_the_order_does_not_matter() -> None:
    built = learner(MetaOptSVM, backbone=smooth("batch"))
    values, example, order = fresh(built), task(), torch.tensor([2, 0, 1])

    def logits(support: Examples) -> Tensor:
        found: Tensor = built.predict(values, built.adapt(values, support), example.query.x)
        return found

    expected = logits(example.support)
    relabelled = logits(example.support._replace(y=order[example.support.y]))
    torch.testing.assert_close(relabelled, expected[:, order.argsort()])
    shuffled = Examples(*(part[torch.tensor([3, 1, 5, 0, 4, 2])] for part in example.support))
    torch.testing.assert_close(logits(shuffled), expected)


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (2, 5), (4, 3)])
def test_the_same_values_serve_any_number_of_classes_and_examples(ways: int, shots: int) -> None:
    values, support = double(identity(2).init(KEY)), examples(ways, shots, 5)
    fast = identity(ways).adapt(values, support)
    assert identity(ways).predict(values, fast, support.x).shape == (ways * shots, ways)
