"""Meta-Curvature: the identity is plain descent, and the matrices of a weight act as their Kronecker product."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.descent import descend
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params, Task
from metaforge_plugins.adapters.meta_curvature import MetaCurvature, MetaCurvatureOptions, mode_product
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
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
RATE = 0.3
WEIGHTS = {"vector": (3,), "dense": (2, 3), "sequence": (2, 3, 2), "image": (3, 2, 2, 1), "volume": (2, 2, 1, 2, 2)}


def convolutional() -> nn.Module:
    """Return a network whose weights have three, four and, with a head, two dimensions."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv1d(1, 2, 2),
        nn.Tanh(),
        nn.Unflatten(2, (1, 2)),
        nn.Conv2d(2, 3, (1, 2)),
        nn.Tanh(),
        nn.Flatten(),
    )


def built(rate: float = RATE, **options: Any) -> Any:
    """Return MAML with Meta-Curvature before descent."""
    own = {name: options.pop(name) for name in ("largest",) if name in options}
    chain = {"meta-curvature": MetaCurvature(MetaCurvatureOptions(**own)), "sgd": SGD(SGDOptions(lr=rate))}
    return learner(MAML, adapters=chain, **options)


def curved(meta: Params, grads: Params) -> Params:
    """Return the updates of the adapter alone."""
    return MetaCurvature(MetaCurvatureOptions()).update(meta, grads, {}, {}, inner_step())[0]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("backbone", [smooth("batch"), convolutional])
def test_the_identity_is_plain_descent_to_the_bit(backbone: Any) -> None:
    plain, ours = learner(MAML, backbone=backbone), built(backbone=backbone)
    values = fresh(plain)
    first = {name: value.double() for name, value in ours.init(KEY).items() if name.startswith("adapters.")}
    one, two = step(plain, values, tasks(2)), step(ours, values | first, tasks(2))
    assert torch.equal(one.losses, two.losses)
    assert all(torch.equal(one.grads[name], two.grads[name]) for name in values)
    assert all(two.grads[name].any() for name in first)


@pytest.mark.parametrize("shape", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_matrices_act_as_their_kronecker_product(shape: tuple[int, ...]) -> None:
    gradient = random(*shape)
    first = MetaCurvature(MetaCurvatureOptions()).init({"w": gradient}, KEY)
    meta = {name: value + random(*value.shape, seed=1) for name, value in first.items()}
    names = ["vector.w"] if len(shape) == 1 else ["out.w", "in.w", "kernel.w"][: min(len(shape), 3)]
    assert list(meta) == names
    factors = [value.diag() if value.dim() == 1 else value for value in meta.values()]
    expected = (reduce(torch.kron, factors) @ gradient.flatten()).reshape(shape)
    torch.testing.assert_close(curved(meta, {"w": gradient})["w"], expected, rtol=1e-12, atol=1e-12)


def test_a_scalar_is_multiplied() -> None:
    close(curved({"vector.w": torch.tensor(3.0)}, {"w": torch.tensor(2.0)})["w"], 6.0)


def test_the_dense_layer_of_the_specification() -> None:
    # ALGORITHMS.md, appendix F4.
    g, a, b = (torch.tensor(rows).double() for rows in ([[1, 2], [3, 4]], [[1, 0.5], [0, 1]], [[1, 0], [0.25, 1]]))
    close(curved({"out.w": a, "in.w": b}, {"w": g})["w"], 2.5, 4.625, 3.0, 4.75)
    # The authors' weights are [in, out], and their second matrix multiplies from the right.
    close(curved({"out.w": b.T, "in.w": a}, {"w": g.T})["w"].T, 3.5, 4.0, 4.0, 4.0)


def test_diagonal_matrices_are_rates_of_rank_one() -> None:
    gradient, left, right, kernel = random(3, 2, 2, 2), random(3), random(2, seed=1), random(4, seed=2)
    meta = {"out.w": left.diag(), "in.w": right.diag(), "kernel.w": kernel.diag()}
    rates = torch.einsum("o,i,k->oik", left, right, kernel).reshape(3, 2, 2, 2)
    theirs = MetaSGD(MetaSGDOptions()).update({"rate.w": rates}, {"w": gradient}, {}, {}, inner_step())[0]["w"]
    torch.testing.assert_close(curved(meta, {"w": gradient})["w"], theirs)


def test_a_large_dimension_has_a_vector() -> None:
    weight = random(3, 4, 2)
    small = MetaCurvature(MetaCurvatureOptions(largest=3)).init({"w": weight}, KEY)
    assert {name: tuple(value.shape) for name, value in small.items()} == {
        "out.w": (3, 3),
        "in.w": (4,),
        "kernel.w": (2, 2),
    }
    vector = random(4, seed=1)
    torch.testing.assert_close(mode_product(weight, vector, 1), mode_product(weight, vector.diag(), 1))
    assert_loss_has_its_gradient(built(backbone=smooth(units=4), largest=3, steps=2))


def test_the_quadratic_task_of_the_specification() -> None:
    # ALGORITHMS.md, appendix F1: with ones it is MAML, and ∂L/∂m = −α g_S ∘ g_Q.
    chain = built(rate=0.1).adapter

    def query_loss(values: Params) -> Tensor:
        def objective(moved: Params, step: int) -> tuple[Tensor, Params]:
            return quadratic(moved["w"], A), {}

        return quadratic(descend(objective, values, {"w": values["w"]}, chain, 1)[0]["w"], B)

    name = "adapters.meta-curvature.vector.w"
    values = {"w": THETA, name: torch.ones_like(THETA)}
    assert float(query_loss(values)) == pytest.approx(5.6984375)
    found = grad(query_loss)(values)
    close(found["w"], -0.325, -3.9125)
    close(found[name], 0.1 * 0.28125, 0.1 * 18.6875)


def test_the_matrices_have_the_gradient_of_one_step() -> None:
    # At the identity, for θ' = θ − α M_out G M_inᵀ: ∂L/∂M_out = −α G_Q G_Sᵀ and ∂L/∂M_in = −α G_Qᵀ G_S.
    one, example = built(steps=1), task()
    values = fresh(learner(MAML)) | {n: v.double() for n, v in one.init(KEY).items() if n.startswith("adapters.")}
    found = grad(lambda v: one.loss(v, example, KEY)[0])(values)

    def plain(v: Params, part: int) -> Tensor:
        return F.cross_entropy(one.model(v, example[part].x), example[part].y)

    support, query = grad(plain)(values, 0), grad(plain)(values | one.adapt(values, example.support, steps=1), 1)
    for name in one.adapted:
        s, q = support[name], query[name]
        expected = {"vector": s * q} if s.dim() == 1 else {"out": q @ s.T, "in": q.T @ s}
        for mode, value in expected.items():
            entry = f"adapters.meta-curvature.{mode}.{name}"
            torch.testing.assert_close(found[entry], -RATE * value, rtol=1e-9, atol=1e-13)


def test_only_the_product_of_matrices_and_rate_matters() -> None:
    one, two = built(steps=3), built(rate=RATE / 4, steps=3)
    values, example = fresh(one), task()
    scaled = {n: 4 * v if ".out." in n or ".vector." in n else v for n, v in values.items()}
    ours, theirs = one.adapt(values, example.support, steps=3), two.adapt(scaled, example.support, steps=3)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-12, atol=1e-12)
        assert not torch.equal(value, values[name])


def reference(values: Params, example: Task, steps: int) -> tuple[Tensor, Params]:
    """Return query loss and gradients of MAML with Meta-Curvature on `smooth()`, in plain autograd."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    names = [name for name in leaves if name.startswith("model.")]

    def loss(w: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3], y)

    def direction(name: str, g: Tensor) -> Tensor:
        m = {mode: leaves.get(f"adapters.meta-curvature.{mode}.{name}") for mode in ("vector", "out", "in")}
        return m["vector"] * g if g.dim() == 1 else torch.einsum("po,qi,oi->pq", m["out"], m["in"], g)

    fast = [leaves[name] for name in names]
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(fast, *example.support), fast, create_graph=True)
        fast = [w - RATE * direction(name, g) for name, w, g in zip(names, fast, gradients, strict=True)]
    total = loss(fast, *example.query)
    return total, dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@pytest.mark.parametrize("steps", [1, 3])
def test_it_equals_plain_autograd(steps: int) -> None:
    one, example = built(steps=steps), task()
    values = fresh(one)
    loss, expected = reference(values, example, steps)
    found, ours = torch.func.grad_and_value(lambda v: one.loss(v, example, KEY)[0])(values)
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", [smooth("batch"), smooth("layer"), convolutional])
def test_finite_differences(backbone: Any) -> None:
    assert_loss_has_its_gradient(built(backbone=backbone, steps=2, adapt="all"))


@pytest.mark.parametrize("backbone", [smooth("batch"), convolutional])
@pytest.mark.parametrize("plan", ["vmap", "fold"])
def test_every_plan_gives_the_same(plan: str, backbone: Any) -> None:
    one = built(backbone=backbone, steps=2)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    assert_equal_steps(step(one, values, batch, plan), looped)
    assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


def test_matrices_are_learned_for_what_is_adapted_alone() -> None:
    one = built(backbone=smooth("batch"))
    params, _ = split_state(fresh(one))
    named = {name.split(".", 3)[3] for name in params if name.startswith("adapters.meta-curvature.")}
    assert named == set(one.adapted)
