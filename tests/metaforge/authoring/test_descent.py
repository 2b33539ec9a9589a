"""Descent on the support loss: its fixtures, adjoints, and chains of gradient transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from metaforge.authoring.descent import UNROLL, Adjoint, Chain, descend, iterates
from metaforge.authoring.functional import prefixed
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import GradientTransform, InnerStep, Params
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from toys import THETA, A, B, assert_true_gradient, close, inner_step, quadratic, sgd

FIRST_ORDER = Adjoint("first-order")


Loss = Callable[[Tensor], Tensor]


def descended(
    loss: Loss,
    values: Params,
    steps: int,
    chain: Chain | None = None,
    *,
    adjoint: Adjoint = UNROLL,
    rate: float = 0.1,
    proximal: float = 0.0,
) -> Tensor:
    """Return `w` after inner steps on a loss that is a function of `w`."""

    def objective(params: Params, step: int) -> tuple[Tensor, Params]:
        return loss(params["w"]), {}

    start = {"w": values["w"]}
    fast, _ = descend(objective, values, start, chain or sgd(rate), steps, adjoint=adjoint, proximal=proximal)
    return fast["w"]


def support(theta: Tensor) -> Tensor:
    """Return the support loss of fixture F1."""
    return quadratic(theta, A)


def query(theta: Tensor) -> Tensor:
    """Return the query loss of fixture F1."""
    return quadratic(theta, B)


# The inner loop on the fixtures F1 (a quadratic loss) and F1s (a loss with changing curvature).


def test_f1_trajectory() -> None:
    for steps, expected in ((1, (0.475, -0.075)), (2, (0.4875, -0.3)), (5, (0.606812, -0.657375))):
        close(descended(support, {"w": THETA}, steps), *expected)
    close(query(THETA), 3.96875)
    close(query(descended(support, {"w": THETA}, 1)), 5.6984375)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_maml_gradient(steps: int) -> None:
    expected = {1: (-0.325, -3.9125), 2: (0.100625, -3.0075), 5: (0.678238, -1.293405)}[steps]

    def function(values: Params) -> Tensor:
        return query(descended(support, values, steps))

    close(grad(function)({"w": THETA})["w"], *expected)
    assert_true_gradient(function, {"w": THETA})


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_first_order_gradient_is_the_gradient_at_the_adapted_weights(steps: int) -> None:
    expected = {1: (-1.125, -5.75), 2: (-1.325, -6.4125), 5: (-1.44375, -7.365312)}[steps]
    gradient = grad(lambda values: query(descended(support, values, steps, adjoint=FIRST_ORDER)))({"w": THETA})["w"]
    close(gradient, *expected)
    assert torch.equal(gradient, grad(query)(descended(support, {"w": THETA}, steps).clone()))


@pytest.mark.parametrize(("steps", "expected"), [(1, (0.25, 3.25)), (5, (-1.068125, 9.07375))])
def test_f1_reptile_direction(steps: int, expected: tuple[float, float]) -> None:
    close((THETA - descended(support, {"w": THETA}, steps, adjoint=FIRST_ORDER)) / 0.1, *expected)


@pytest.mark.parametrize("adjoint", [UNROLL, FIRST_ORDER])
def test_f1_meta_sgd_rates(adjoint: Adjoint) -> None:
    chain = Chain({"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.1))})
    values = {"w": THETA} | prefixed("adapters", chain.init({"w": THETA}, make_key(0)))
    gradients = grad(lambda v: query(descended(support, v, 1, chain, adjoint=adjoint)))(values)
    close(gradients["adapters.meta-sgd.rate.w"], 0.28125, 18.6875)
    close(gradients["adapters.meta-sgd.rate.w"].sum(), 18.96875)
    close(gradients["w"], *((-1.125, -5.75) if adjoint is FIRST_ORDER else (-0.325, -3.9125)))


def test_f1s_curvature_that_is_not_constant() -> None:
    values = {"w": torch.ones((), dtype=torch.float64)}

    def quartic(theta: Tensor) -> Tensor:
        return theta**4 / 4

    def parabola(theta: Tensor) -> Tensor:
        return theta**2 / 2

    close(descended(quartic, values, 1), 0.9)
    close(descended(quartic, values, 2), 0.8271)
    for steps, exact, first in ((1, 0.63, 0.9), (2, 0.438280, 0.8271)):
        close(grad(lambda v, n=steps: parabola(descended(quartic, v, n)))(values)["w"], exact)
        close(grad(lambda v, n=steps: parabola(descended(quartic, v, n, adjoint=FIRST_ORDER)))(values)["w"], first)
    close((values["w"] - descended(quartic, values, 2)) / 0.1, 1.729)


def test_zero_inner_steps_or_a_zero_rate_leave_the_parameters_unchanged() -> None:
    assert torch.equal(descended(support, {"w": THETA}, 0), THETA)
    assert torch.equal(descended(support, {"w": THETA}, 3, rate=0.0), THETA)
    gradient = grad(lambda v: query(descended(support, v, 3, rate=0.0)))({"w": THETA})["w"]
    assert torch.equal(gradient, grad(query)(THETA))


def test_the_first_order_gradient_of_a_linear_support_loss_is_exact() -> None:
    def linear(theta: Tensor) -> Tensor:
        return (theta * A).sum()

    exact, first = (
        grad(lambda v, f=f: query(descended(linear, v, 3, adjoint=f)))({"w": THETA})["w"] for f in (UNROLL, FIRST_ORDER)
    )
    assert torch.equal(exact, first)


def test_first_order_keeps_no_graph_of_the_inner_loop() -> None:
    theta = THETA.clone().requires_grad_()
    pending, names = [descended(support, {"w": theta}, 10, adjoint=FIRST_ORDER).grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [parent for parent, _ in node.next_functions]
    assert names == {"SubBackward0", "torch::autograd::AccumulateGrad"}


def test_the_objective_gets_all_values_and_its_changes_of_the_state_are_summed_without_a_graph() -> None:
    calls = []

    def objective(params: Params, step: int) -> tuple[Tensor, Params]:
        calls.append((set(params), step))
        return quadratic(params["w"], A) * params["scale"], {"state.count": params["scale"] * (step + 1)}

    one = torch.ones((), dtype=torch.float64)
    values = {"w": THETA, "scale": one.clone().requires_grad_(), "state.count": one}
    fast, state = descend(objective, values, {"w": THETA}, sgd(0.1), 3)
    assert calls == [({"w", "scale", "state.count"}, step) for step in range(3)]
    assert set(fast) == {"w"}
    assert float(state["state.count"]) == 6
    assert not state["state.count"].requires_grad
    assert fast["w"].requires_grad


# Adjoints.

IMPLICIT = {
    "cg": Adjoint("implicit", solver_steps=2),
    "cr": Adjoint("implicit", solver="cr", solver_steps=2),
    "neumann": Adjoint("implicit", solver="neumann", solver_steps=200, solver_rate=0.2),
}


def f1_gradient(steps: int, adjoint: Adjoint, proximal: float = 2.0) -> Tensor:
    """Return the meta-gradient of fixture F1 with a proximal term."""
    return grad(lambda v: query(descended(support, v, steps, adjoint=adjoint, rate=0.3, proximal=proximal)))(
        {"w": THETA}
    )["w"]


def test_a_proximal_term_pulls_the_solution_to_its_start() -> None:
    # F1 with factor 2: the solution is (H + 2 I)^-1 (H a + 2 theta).
    close(descended(support, {"w": THETA}, 200, rate=0.3, proximal=2.0), 0.6052631578947368, -0.42105263157894735)


@pytest.mark.parametrize("adjoint", IMPLICIT.values(), ids=IMPLICIT)
def test_f1_implicit_gradient(adjoint: Adjoint) -> None:
    wanted = torch.tensor([0.063712, -2.675900], dtype=torch.float64)
    torch.testing.assert_close(f1_gradient(200, adjoint), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adjoint", [*IMPLICIT.values(), Adjoint("recompute")], ids=[*IMPLICIT, "recompute"])
def test_all_adjoints_agree_where_the_inner_loop_has_converged(adjoint: Adjoint) -> None:
    unrolled = f1_gradient(200, UNROLL)
    torch.testing.assert_close(f1_gradient(200, adjoint), unrolled, rtol=0, atol=1e-8)
    if adjoint.method == "implicit":
        # Before it has converged, the implicit gradient is another one.
        assert (f1_gradient(1, adjoint) - f1_gradient(1, UNROLL)).norm() > 0.01


def test_the_implicit_gradient_does_not_depend_on_the_path() -> None:
    adjoint = IMPLICIT["cg"]
    chains = (sgd(0.3), Chain({"adam": Adam(AdamOptions(lr=0.02, beta1=0.9, carry=False)), "sgd": sgd(1.0)}))
    gradients = [
        grad(lambda v, c=c, n=n: query(descended(support, v, n, c, adjoint=adjoint, proximal=2.0)))({"w": THETA})["w"]
        for c, n in zip(chains, (200, 3000), strict=True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_a_large_proximal_factor_gives_joint_training() -> None:
    chain = sgd(1e-7)
    implicit = grad(lambda v: query(descended(support, v, 50, chain, adjoint=IMPLICIT["cg"], proximal=1e7)))(
        {"w": THETA}
    )["w"]
    torch.testing.assert_close(implicit, grad(query)(THETA), rtol=1e-5, atol=1e-5)


def test_zero_steps_return_the_start_under_every_adjoint() -> None:
    for adjoint in (UNROLL, FIRST_ORDER, Adjoint("recompute"), *IMPLICIT.values()):
        torch.testing.assert_close(f1_gradient(0, adjoint), grad(query)(THETA))


def test_the_implicit_adjoint_keeps_no_graph_of_the_steps() -> None:
    theta = THETA.clone().requires_grad_()

    def nodes(steps: int) -> int:
        pending, seen = [descended(support, {"w": theta}, steps, adjoint=IMPLICIT["cg"]).grad_fn], set()
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(1) == nodes(50)


ADJOINTS = [Adjoint("unroll"), Adjoint("recompute"), FIRST_ORDER, Adjoint("implicit", solver_steps=4)]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda adjoint: adjoint.method)
def test_all_iterates_are_those_of_separate_descents_from_one_pass(adjoint: Adjoint) -> None:
    adapters = {"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.3)), "adam": Adam(AdamOptions(lr=0.1, beta1=0.5, eps=1e-3))}
    chain = Chain(adapters)
    values = {"w": THETA, "state.visits": THETA.new_zeros(())}
    values |= prefixed("adapters", chain.init({"w": THETA}, make_key(0)))
    calls: list[int] = []

    def objective(values: Params, step: int) -> tuple[Tensor, Params]:
        calls.append(step)
        return values["w"].pow(4).sum() + values["state.visits"] * values["w"].sum(), {
            "state.visits": THETA.new_ones(())
        }

    how = {"adjoint": adjoint, "proximal": 0.5}
    start = {"w": THETA}
    path = iterates(objective, values, start, chain, 3, **how)
    assert calls == [0, 1, 2]
    for steps, (fast, changes) in enumerate(path):
        alone, expected = descend(objective, values, start, chain, steps, **how)
        assert changes.keys() == expected.keys()
        assert torch.equal(fast["w"], alone["w"])
        assert all(torch.equal(changes[name], expected[name]) for name in expected)

    def total(values: Params, *, one_pass: bool) -> Tensor:
        start = {"w": values["w"]}
        if one_pass:
            found = iterates(objective, values, start, chain, 3, **how)
        else:
            found = [descend(objective, values, start, chain, steps, **how) for steps in range(4)]
        return torch.stack([(number + 1) * query(fast["w"]) for number, (fast, _) in enumerate(found)]).sum()

    ours, theirs = (grad(lambda v, o=one_pass: total(v, one_pass=o))(values) for one_pass in (True, False))
    for name in values:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


def test_an_adapter_gets_the_support_loss() -> None:
    class Polyak(GradientTransform):
        """Steps of the size loss / squared norm of the gradient (Polyak 1969), for a minimum of zero."""

        def update(
            self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
        ) -> tuple[Params, Params]:
            return {"w": step.loss / grads["w"].square().sum() * grads["w"]}, state

    def total(values: Params) -> Tensor:
        return descended(support, values, 2, Chain({"polyak": Polyak()})).square().sum()

    w = THETA
    for _ in range(2):
        g = grad(support)(w)
        w = w - support(w) / g.square().sum() * g
    torch.testing.assert_close(total({"w": THETA}), w.square().sum())
    assert_true_gradient(total, {"w": THETA})


# Chains.


def test_the_output_of_an_adapter_is_the_gradient_of_the_next_one() -> None:
    chain = Chain({"first": SGD(SGDOptions(lr=0.5)), "second": SGD(SGDOptions(lr=0.2))})
    updates, _ = chain.update({}, {"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, inner_step())
    close(updates["w"], 0.1, 0.1)


def test_an_inner_step_gets_the_state_that_earlier_steps_changed() -> None:
    # Each step halves the distance to 8, so four steps reach 7.5. Four times the first step's change would be 16.
    def objective(params: Params, step: int) -> tuple[Tensor, Params]:
        return quadratic(params["w"], A), {"state.mean": 0.5 * (8.0 - params["state.mean"])}

    values = {"w": THETA, "state.mean": torch.zeros((), dtype=torch.float64)}
    _, state = descend(objective, values, {"w": THETA}, sgd(0.1), 4)
    assert float(state["state.mean"]) == 7.5


@pytest.mark.parametrize("names", [("sgd", "sgd"), ("meta-sgd", "sgd"), ("sgd", "adam"), ("adam", "meta-sgd")])
def test_every_chain_of_adapters_reduces_the_loss(names: tuple[str, str]) -> None:
    adapters = {
        "sgd": SGD(SGDOptions(lr=0.5)),
        "meta-sgd": MetaSGD(MetaSGDOptions(lr=0.5)),
        "adam": Adam(AdamOptions(lr=0.1)),
    }
    chain = Chain({f"{place}-{name}": adapters[name] for place, name in enumerate(names)})
    params = {"w": THETA}
    values = params | prefixed("adapters", chain.init(params, make_key(0)))
    fast, _ = descend(lambda v, step: (support(v["w"]), {}), values, params, chain, 3)
    assert float(support(fast["w"])) < float(support(THETA))


def test_a_chain_prefixes_the_entries_and_the_state_of_each_adapter() -> None:
    chain = Chain({"adam": Adam(AdamOptions()), "meta-sgd": MetaSGD(MetaSGDOptions(lr=-1.0))})
    params = {"w": THETA}
    meta = chain.init(params, make_key(0))
    assert set(meta) == {"state.adam.second.w", "state.adam.count", "meta-sgd.rate.w"}
    state = chain.start(meta, params)
    assert {name.split(".")[0] for name in state} == {"adam"}
    updates, after = chain.update(meta, {"w": grad(support)(THETA)}, state, params, inner_step())
    close(updates["w"], *(-1e-3 * grad(support)(THETA).sign()))
    assert set(chain.carry(meta, after)) == {"state.adam.second.w", "state.adam.count"}


class Newton(GradientTransform):
    """Newton steps with the dense Hessian of the objective, which are constants if `detached`."""

    def __init__(self, detached: bool = False) -> None:
        self.detached = detached

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        assert step.objective is not None
        at = params["w"].detach() if self.detached else params["w"]
        hessian = torch.func.jacrev(grad(lambda w: step.objective({"w": w})))(at)
        return {"w": torch.linalg.solve(hessian, grads["w"])}, state


def cubic(theta: Tensor) -> Tensor:
    """Return a support loss whose curvature changes."""
    return quadratic(theta, A) + (theta**4).sum() / 4


@pytest.mark.parametrize("adjoint", [UNROLL, Adjoint("recompute")], ids=lambda adjoint: adjoint.method)
def test_the_objective_of_an_inner_step_is_differentiated_with_the_steps(adjoint: Adjoint) -> None:
    newton = Chain({"newton": Newton()})

    def loss(v: Params) -> Tensor:
        return query(descended(cubic, v, 2, newton, adjoint=adjoint, proximal=2.0))

    assert_true_gradient(loss, {"w": THETA})
    # It has the proximal term: from another start, a step leads elsewhere.
    moved = descended(support, {"w": THETA}, 1, newton, adjoint=adjoint, proximal=2.0)
    close(moved, 0.6052631578947368, -0.42105263157894735)


@pytest.mark.parametrize("adjoint", [FIRST_ORDER, *IMPLICIT.values()], ids=["first-order", *IMPLICIT])
def test_a_detached_use_of_the_objective_leaves_no_derivative_of_the_steps(adjoint: Adjoint) -> None:
    newton = Chain({"newton": Newton(detached=True)})
    found = grad(lambda v: query(descended(cubic, v, 8, newton, adjoint=adjoint, proximal=2.0)))({"w": THETA})["w"]
    solution = descended(cubic, {"w": THETA}, 8, newton, proximal=2.0)
    identity = torch.eye(2, dtype=torch.float64)
    factor = identity
    if adjoint.method == "implicit":
        factor = identity + torch.func.jacrev(grad(cubic))(solution) / 2
    torch.testing.assert_close(found, torch.linalg.solve(factor, grad(query)(solution)), rtol=1e-8, atol=1e-10)
