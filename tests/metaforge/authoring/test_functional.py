"""Dictionaries of parameters, task losses, chains of adapters and the inner loop, with the fixtures of appendix F."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from metaforge.authoring.functional import add_params, detach_params, prefixed, select, split_state, sum_of
from metaforge.authoring.inner_loop import Chain, descend
from metaforge.authoring.losses import criterion, cross_entropy, mean_squared_error, one_hot, score
from metaforge.authoring.protocols import Params
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from toys import THETA, A, B, assert_true_gradient, close, quadratic, sgd

Loss = Callable[[Tensor], Tensor]


def adapted(
    loss: Loss, values: Params, steps: int, chain: Chain | None = None, *, first_order: bool = False, rate: float = 0.1
) -> Tensor:
    """Return `w` after inner steps on a loss of it."""
    objective: Callable[[Params, int], tuple[Tensor, Params]] = lambda moved, step: (loss(moved["w"]), {})  # noqa: E731
    fast, _ = descend(objective, values, {"w": values["w"]}, chain or sgd(rate), steps, first_order=first_order)
    return fast["w"]


def support(theta: Tensor) -> Tensor:
    """Return F1's support loss."""
    return quadratic(theta, A)


def query(theta: Tensor) -> Tensor:
    """Return F1's query loss."""
    return quadratic(theta, B)


# Dictionaries.


def test_prefixed_and_select_are_inverse_and_keep_state_in_front() -> None:
    params = {"a.b": torch.ones(1), "state.c": torch.zeros(2)}
    inside = prefixed("net", params)
    assert set(inside) == {"net.a.b", "state.net.c"}
    assert set(select(inside | {"network.a": torch.ones(1)}, "net")) == set(params)
    assert select(inside, "net")["state.c"] is params["state.c"]


def test_split_state_separates_all_and_only_state() -> None:
    params, state = split_state({"a": torch.ones(1), "state.a": torch.ones(1), "statement": torch.ones(1)})
    assert set(params) == {"a", "statement"}
    assert set(state) == {"state.a"}


def test_added_keeps_names_of_either_side_and_changes_neither() -> None:
    left, right = {"a": torch.ones(1), "b": torch.ones(1)}, {"b": torch.ones(1), "c": torch.ones(1)}
    assert {name: float(value) for name, value in add_params(left, right).items()} == {"a": 1, "b": 2, "c": 1}
    assert float(left["b"]) == 1
    assert float(sum_of(x for x in (torch.ones(()), torch.ones(())))) == 2


def test_detached_cuts_the_graph() -> None:
    assert not detach_params({"a": torch.ones(1, requires_grad=True) * 2})["a"].requires_grad


# Losses.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_equal_torch(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 4, generator=draw, dtype=dtype), torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(one_hot(y, 4, dtype), F.one_hot(y, 4).to(dtype))
    torch.testing.assert_close(cross_entropy(logits, y), F.cross_entropy(logits, y))
    torch.testing.assert_close(mean_squared_error(logits, -logits), F.mse_loss(logits, -logits))
    assert criterion("classification") is cross_entropy
    assert criterion("regression") is mean_squared_error
    assert score("classification", logits, logits.argmax(-1)) == 1
    torch.testing.assert_close(score("regression", logits, -logits), F.mse_loss(logits, -logits))


def test_losses_and_scores_of_rounded_products_keep_their_own_digits() -> None:
    draw = torch.Generator().manual_seed(3)
    logits, y = torch.randn(300, 3, generator=draw).bfloat16(), torch.arange(300) % 3
    for kind, target in (("classification", y), ("regression", logits.flip(0))):
        for function in (criterion(kind), partial(score, kind)):  # type: ignore[arg-type]
            found = function(logits, target)
            assert found.dtype == torch.float32
            assert torch.equal(found, function(logits.float(), target.float() if kind == "regression" else target))


def test_losses_are_safe_under_nested_transforms() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(3, 6, 4, generator=draw), torch.randint(4, (3, 6), generator=draw)
    batched = vmap(grad(cross_entropy))(logits, y)
    torch.testing.assert_close(
        batched, torch.stack([grad(cross_entropy)(one, of) for one, of in zip(logits, y, strict=True)])
    )


# The inner loop on F1 and F1s.


def test_f1_trajectory() -> None:
    for steps, expected in ((1, (0.475, -0.075)), (2, (0.4875, -0.3)), (5, (0.606812, -0.657375))):
        close(adapted(support, {"w": THETA}, steps), *expected)
    close(query(THETA), 3.96875)
    close(query(adapted(support, {"w": THETA}, 1)), 5.6984375)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_maml_gradient(steps: int) -> None:
    expected = {1: (-0.325, -3.9125), 2: (0.100625, -3.0075), 5: (0.678238, -1.293405)}[steps]
    function = lambda values: query(adapted(support, values, steps))  # noqa: E731
    close(grad(function)({"w": THETA})["w"], *expected)
    assert_true_gradient(function, {"w": THETA})


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_first_order_gradient_is_the_gradient_at_the_adapted_weights(steps: int) -> None:
    expected = {1: (-1.125, -5.75), 2: (-1.325, -6.4125), 5: (-1.44375, -7.365312)}[steps]
    gradient = grad(lambda values: query(adapted(support, values, steps, first_order=True)))({"w": THETA})["w"]
    close(gradient, *expected)
    assert torch.equal(gradient, grad(query)(adapted(support, {"w": THETA}, steps).clone()))


@pytest.mark.parametrize(("steps", "expected"), [(1, (0.25, 3.25)), (5, (-1.068125, 9.07375))])
def test_f1_reptile_direction(steps: int, expected: tuple[float, float]) -> None:
    close((THETA - adapted(support, {"w": THETA}, steps, first_order=True)) / 0.1, *expected)


@pytest.mark.parametrize("first_order", [False, True])
def test_f1_meta_sgd_rates(first_order: bool) -> None:
    chain = Chain({"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.1))})
    values = {"w": THETA} | prefixed("adapters", chain.init({"w": THETA}))
    gradients = grad(lambda v: query(adapted(support, v, 1, chain, first_order=first_order)))(values)
    close(gradients["adapters.meta-sgd.rate.w"], 0.28125, 18.6875)
    close(gradients["adapters.meta-sgd.rate.w"].sum(), 18.96875)
    close(gradients["w"], *((-1.125, -5.75) if first_order else (-0.325, -3.9125)))


def test_f1s_curvature_that_is_not_constant() -> None:
    one = {"w": torch.ones((), dtype=torch.float64)}
    bent: Loss = lambda theta: theta**4 / 4  # noqa: E731
    bowl: Loss = lambda theta: theta**2 / 2  # noqa: E731
    close(adapted(bent, one, 1), 0.9)
    close(adapted(bent, one, 2), 0.8271)
    for steps, exact, first in ((1, 0.63, 0.9), (2, 0.438280, 0.8271)):
        close(grad(lambda v, n=steps: bowl(adapted(bent, v, n)))(one)["w"], exact)
        close(grad(lambda v, n=steps: bowl(adapted(bent, v, n, first_order=True)))(one)["w"], first)
    close((one["w"] - adapted(bent, one, 2)) / 0.1, 1.729)


def test_zero_steps_and_zero_rate_change_nothing() -> None:
    assert torch.equal(adapted(support, {"w": THETA}, 0), THETA)
    assert torch.equal(adapted(support, {"w": THETA}, 3, rate=0.0), THETA)
    gradient = grad(lambda v: query(adapted(support, v, 3, rate=0.0)))({"w": THETA})["w"]
    assert torch.equal(gradient, grad(query)(THETA))


def test_a_linear_support_loss_makes_the_first_order_exact() -> None:
    flat: Loss = lambda theta: (theta * A).sum()  # noqa: E731
    exact, first = (grad(lambda v, f=f: query(adapted(flat, v, 3, first_order=f)))({"w": THETA})["w"] for f in (0, 1))
    assert torch.equal(exact, first)


def test_first_order_keeps_no_graph_of_the_inner_loop() -> None:
    theta = THETA.clone().requires_grad_()
    pending, kinds = [adapted(support, {"w": theta}, 10, first_order=True).grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None:
            kinds.add(node.name())
            pending += [parent for parent, _ in node.next_functions]
    assert kinds == {"SubBackward0", "torch::autograd::AccumulateGrad"}


def test_the_objective_sees_every_value_and_its_state_is_summed_without_a_graph() -> None:
    seen = []

    def objective(moved: Params, step: int) -> tuple[Tensor, Params]:
        seen.append((set(moved), step))
        return quadratic(moved["w"], A) * moved["scale"], {"state.count": moved["scale"] * (step + 1)}

    one = torch.ones((), dtype=torch.float64)
    values = {"w": THETA, "scale": one.clone().requires_grad_(), "state.count": one}
    fast, state = descend(objective, values, {"w": THETA}, sgd(0.1), 3)
    assert seen == [({"w", "scale", "state.count"}, step) for step in range(3)]
    assert set(fast) == {"w"}
    assert float(state["state.count"]) == 6
    assert not state["state.count"].requires_grad
    assert fast["w"].requires_grad


# Chains.


def test_a_chain_hands_each_output_to_the_next_as_its_gradient() -> None:
    chain = Chain({"one": SGD(SGDOptions(lr=0.5)), "two": SGD(SGDOptions(lr=0.2))})
    updates, _ = chain.update({}, {"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, 0)
    close(updates["w"], 0.1, 0.1)


def test_a_later_pass_sees_what_the_earlier_ones_changed() -> None:
    # Each step halves the distance to 8: one after the other, not four times the first half.
    def objective(moved: Params, step: int) -> tuple[Tensor, Params]:
        return quadratic(moved["w"], A), {"state.mean": 0.5 * (8.0 - moved["state.mean"])}

    values = {"w": THETA, "state.mean": torch.zeros((), dtype=torch.float64)}
    _, state = descend(objective, values, {"w": THETA}, sgd(0.1), 4)
    assert float(state["state.mean"]) == 7.5


@pytest.mark.parametrize("names", [("sgd", "sgd"), ("meta-sgd", "sgd"), ("sgd", "adam"), ("adam", "meta-sgd")])
def test_any_chain_descends(names: tuple[str, str]) -> None:
    made = {
        "sgd": SGD(SGDOptions(lr=0.5)),
        "meta-sgd": MetaSGD(MetaSGDOptions(lr=0.5)),
        "adam": Adam(AdamOptions(lr=0.1)),
    }
    chain = Chain({f"{place}-{name}": made[name] for place, name in enumerate(names)})
    params = {"w": THETA}
    values = params | prefixed("adapters", chain.init(params))
    fast, _ = descend(lambda v, step: (support(v["w"]), {}), values, params, chain, 3)
    assert float(support(fast["w"])) < float(support(THETA))


def test_a_chain_keeps_entries_and_state_apart() -> None:
    chain = Chain({"adam": Adam(AdamOptions()), "meta-sgd": MetaSGD(MetaSGDOptions(lr=-1.0))})
    params = {"w": THETA}
    meta = chain.init(params)
    assert set(meta) == {"state.adam.second.w", "state.adam.count", "meta-sgd.rate.w"}
    state = chain.start(meta, params)
    assert {name.split(".")[0] for name in state} == {"adam"}
    updates, after = chain.update(meta, {"w": grad(support)(THETA)}, state, params, 0)
    close(updates["w"], *(-1e-3 * grad(support)(THETA).sign()))
    assert set(chain.carry(meta, after)) == {"state.adam.second.w", "state.adam.count"}
