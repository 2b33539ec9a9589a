"""R2-D2: fixture F7, both forms of the solution, and its limits for small and large λ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.closed_form.r2d2 import R2D2
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


def identity(ways: int = 2, features: int = 2, **options: Any) -> R2D2:
    """Return ridge regression on the inputs themselves: the network does nothing."""
    spec = TaskSpec("classification", (features,), ways, TaskShape(ways, 1, 1))
    return R2D2(R2D2.Config(**options), Parts(spec, nn.Identity))


def test_f7() -> None:
    # Two examples, so the nλ of the fixture is ½; its third feature is the column of ones.
    built = identity(ridge=0.25)
    support = Examples(torch.eye(2, dtype=torch.float64), torch.arange(2))
    expected = torch.tensor([[0.476190, -0.190476], [-0.190476, 0.476190], [0.285714, 0.285714]]).double()
    found = built.adapt(double(built.init(KEY)), support)["weights"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_solution_is_that_of_least_squares_with_a_penalty(shots: int) -> None:
    """With 3 or 12 examples of 5 features: by the matrix of the support set, and by that of the features."""
    built = identity(3, 5, ridge=0.3)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3 * shots, 5, generator=draw, dtype=torch.float64)
    y = torch.arange(3).repeat(shots)
    found = built.adapt(double(built.init(KEY)), Examples(x, y))["weights"]
    rows, n = torch.cat([x, torch.ones(len(x), 1).double()], 1), len(x)
    penalty = (n * 0.3) ** 0.5 * torch.eye(6).double()
    targets = torch.cat([F.one_hot(y).double(), torch.zeros(6, 3).double()])
    expected = torch.linalg.lstsq(torch.cat([rows, penalty]), targets).solution
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_small_ridge_reproduces_the_labels_and_a_large_one_gives_sums_of_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    support = Examples(torch.randn(4, 6, generator=draw, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    x = torch.randn(7, 6, generator=draw, dtype=torch.float64)
    rows = {name: torch.cat([t, torch.ones(len(t), 1).double()], 1) for name, t in (("s", support.x), ("q", x))}

    def logits(ridge: float, queries: Tensor) -> Tensor:
        built = identity(3, 6, ridge=ridge, scale=1.0)
        values = double(built.init(KEY))
        return built.predict(values, built.adapt(values, support), queries)

    labels = F.one_hot(support.y).double()
    torch.testing.assert_close(logits(1e-12, support.x), labels, rtol=0, atol=1e-8)
    sums = rows["q"] @ rows["s"].T @ labels
    torch.testing.assert_close(4e9 * logits(1e9, x), sums, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(learner(R2D2, backbone=smooth("batch"), norm=norm, ridge=0.1))


def test_the_gradient_is_that_of_plain_pytorch() -> None:
    built = learner(R2D2, backbone=lambda: nn.Linear(3, 4), ridge=0.2)
    values, example = fresh(built), task(1)
    leaves = [values[name].clone().requires_grad_() for name in ("model.weight", "model.bias", "scale", "offset")]
    names = dict(zip(("model.weight", "model.bias", "scale", "offset"), leaves, strict=True))
    ours = torch.autograd.grad(built.loss(values | names, example, KEY)[0], leaves)
    w, b, scale, offset = leaves
    s, q = (torch.cat([t @ w.T + b, torch.ones(len(t), 1).double()], 1) for t in (example.support.x, example.query.x))
    inverse = torch.linalg.inv(s.T @ s + 0.2 * len(s) * torch.eye(5).double())
    logits = scale * (q @ (inverse @ (s.T @ F.one_hot(example.support.y).double()))) + offset
    theirs = torch.autograd.grad(F.cross_entropy(logits, example.query.y), leaves)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(R2D2, backbone=smooth("batch"), norm=norm, ridge=0.1)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


def test_other_labels_permute_the_logits_and_the_order_does_not_matter() -> None:
    built = learner(R2D2, backbone=smooth("batch"))
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
    values = double(identity(2).init(KEY))
    x = torch.randn(ways * shots, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast = identity(ways).adapt(values, Examples(x, torch.arange(ways).repeat(shots)))
    assert fast["weights"].shape == (3, ways)
    assert identity(ways).predict(values, fast, x).shape == (ways * shots, ways)
