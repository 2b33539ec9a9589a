"""Reptile: the gradient of its surrogate is θ − φ, and its inner loop goes through the task's examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.descent import Adjoint, descend
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Task
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.reptile import Minibatches, Reptile, ReptileOptions
from toys import POLICIES, THETA, A, B, H, assert_equal_steps, fresh, learner, sgd, smooth, step, task, tasks

KEY = make_key(0)
RATE = 0.3


def built(**options: Any) -> Any:
    """Return Reptile with plain descent."""
    return learner(Reptile, adapters={"sgd": SGD(SGDOptions(lr=RATE))}, **options)


def everything(example: Task) -> Examples:
    """Return support and query as one set."""
    return Examples(*(torch.cat(pair) for pair in zip(example.support, example.query, strict=True)))


def test_one_step_on_all_examples_is_joint_training() -> None:
    one = built(steps=1, batch=1000)
    values, example = fresh(one), task()
    data = everything(example)
    joint = grad(lambda v: F.cross_entropy(one.model(v, data.x), data.y))(values)
    found = grad(lambda v: one.loss(v, example, KEY)[0])(values)
    for name in values:
        torch.testing.assert_close(found[name] / RATE, joint[name], rtol=1e-9, atol=1e-12)
        # An outer step of size one on one task is then one plain step of descent.
        torch.testing.assert_close(values[name] - found[name], values[name] - RATE * joint[name])


@pytest.mark.parametrize("norm", POLICIES)
def test_the_gradient_is_the_way_to_the_adapted_weights(norm: str) -> None:
    one = built(backbone=smooth("batch"), steps=4, batch=1000, norm=norm)
    values, example = fresh(one), task()
    params, state = split_state(values)
    reached = one.adapt(values, everything(example), steps=4, key=KEY)
    found = grad(lambda v: one.loss(v | state, example, KEY)[0])(params)
    for name in params:
        if name in one.adapted:
            torch.testing.assert_close(found[name], values[name] - reached[name], rtol=1e-9, atol=1e-12)
        else:
            assert not found[name].any()
    half = sum((values[n] - reached[n]).square().sum() for n in one.adapted) / 2
    torch.testing.assert_close(one.loss(values, example, KEY)[0], half)


@pytest.mark.parametrize("norm", POLICIES)
@pytest.mark.parametrize("adapter", ["sgd", "adam"])
def test_vectorised_equals_loop(adapter: str, norm: str) -> None:
    chosen = {"sgd": SGD(SGDOptions(lr=0.1)), "adam": Adam(AdamOptions(lr=0.1, eps=1e-3))}[adapter]
    one = learner(Reptile, backbone=smooth("batch"), adapters={adapter: chosen}, steps=3, batch=4, norm=norm)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    assert_equal_steps(step(one, values, batch, "vmap"), looped)
    assert_equal_steps(step(one, values, batch, "vmap", chunk=3), looped)
    assert set(looped.metrics) == {"score", "fit"}


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_fixed_point_of_two_quadratic_tasks_is_the_mean_of_their_optima(steps: int) -> None:
    def way(centre: Tensor, theta: Tensor) -> Tensor:
        objective = lambda v, n: (0.5 * (v["w"] - centre) @ H @ (v["w"] - centre), {})  # noqa: E731
        return (
            theta
            - descend(objective, {"w": theta}, {"w": theta}, sgd(0.1), steps, adjoint=Adjoint("first-order"))[0]["w"]
        )

    middle = (A + B) / 2
    torch.testing.assert_close(way(A, middle) + way(B, middle), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    contraction = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - 0.1 * H, steps)
    torch.testing.assert_close(THETA - way(A, THETA), A + contraction @ (THETA - A))


def test_minibatches_go_through_the_examples_without_replacement() -> None:
    data = Examples(torch.arange(10.0), torch.arange(10))
    batches = Minibatches(data, 3, KEY)
    epochs = [torch.cat([batches(step).y for step in range(3 * epoch, 3 * epoch + 3)]) for epoch in range(20)]
    assert all(len(epoch.unique()) == 9 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 20
    assert set(torch.cat(epochs).tolist()) == set(range(10))
    assert torch.equal(batches(4).x, batches(4).y.float())
    assert not torch.equal(batches(0).y, Minibatches(data, 3, make_key(1))(0).y)
    whole = Minibatches(data, 10, KEY)
    assert sorted(whole(7).y.tolist()) == list(range(10))


def test_a_fresh_adam_moves_every_weight_by_its_rate_at_the_first_step() -> None:
    adam = Adam(AdamOptions(lr=0.01, carry=False, eps=1e-12))
    one = learner(Reptile, adapters={"adam": adam}, steps=1, batch=1000)
    values, example = fresh(one), task()
    data = everything(example)
    gradients = grad(lambda v: F.cross_entropy(one.model(v, data.x), data.y))(values)
    found = grad(lambda v: one.loss(v, example, KEY)[0])(values)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], 0.01 * gradient.sign(), rtol=1e-6, atol=1e-9)


def test_adams_second_moment_outlives_the_task_and_the_weights_do_not() -> None:
    adam = Adam(AdamOptions(lr=0.01))
    one = learner(Reptile, adapters={"adam": adam}, steps=2, batch=1000)
    values, example = fresh(one), task()
    change = one.loss(values, example, KEY)[1].state
    assert float(change["state.adapters.adam.count"]) == 2
    later = {name: value + change.get(name, 0) for name, value in values.items()}
    assert all(torch.equal(values[name], later[name]) for name in one.adapted)
    first, second = (step(one, v, tasks(1)).grads["model.2.weight"] for v in (values, later))
    assert not torch.allclose(first, second)
    assert all(value.min() >= 0 for name, value in later.items() if ".second." in name)


def test_the_support_set_alone_is_adapted_to_in_evaluation() -> None:
    one = built(steps=2, test_steps=3, batch=2)
    values, example = fresh(one), task()
    reached = one.adapt(values, example.support)
    theta = {name: values[name] for name in one.adapted}
    for _ in range(3):
        gradient = grad(lambda v: F.cross_entropy(one.model(v, example.support.x), example.support.y))(theta)
        theta = {name: value - RATE * gradient[name] for name, value in theta.items()}
    for name, value in theta.items():
        torch.testing.assert_close(reached[name], value)


def test_without_transduction_each_query_is_normalised_beside_the_support_set_alone() -> None:
    one = built(backbone=smooth("batch"), steps=2, test_steps=3, transduction=False)
    assert (one.norm, one.transductive) == ("support and one query", False)
    values, example = fresh(one), task()
    fast = one.adapt(values, example.support)
    found = one.predict(values, fast, example.query.x)
    for number, query in enumerate(example.query.x):
        together = one.model(values | fast, torch.cat([example.support.x, query[None]]))
        torch.testing.assert_close(found[number], together[-1], rtol=1e-9, atol=1e-12)
    with_transduction = built(backbone=smooth("batch"), steps=2, test_steps=3)
    reached = with_transduction.adapt(values, example.support)
    assert all(torch.equal(reached[name], fast[name]) for name in reached)
    assert not torch.allclose(with_transduction.predict(values, reached, example.query.x), found)


def test_without_transduction_the_other_policies_are_refused() -> None:
    with pytest.raises(ValidationError, match="norm is support"):
        ReptileOptions(norm="support", transduction=False)
    plain = built(transduction=False)
    assert (plain.norm, plain.transductive) == ("none", False)
