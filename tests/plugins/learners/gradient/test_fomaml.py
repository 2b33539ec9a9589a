"""FOMAML: the query gradient at the adapted weights, bit for bit, at no second-order cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import seeded, with_head
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from toys import POLICIES, assert_equal_steps, double, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_is_that_of_a_deep_copy_at_the_adapted_weights(steps: int) -> None:
    with seeded(make_key(1)):
        module = with_head(smooth(), 3, (3,))().double()
    built = learner(FOMAML, backbone=lambda: module[0], steps=steps, adapters={"sgd": SGD(SGDOptions(lr=0.3))})
    values = {f"model.{name}": value.detach().clone() for name, value in module.named_parameters()}
    example, copied = task(), copy.deepcopy(module)
    descent = torch.optim.SGD(copied.parameters(), lr=0.3)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(copied(example.support.x), example.support.y).backward()
        descent.step()
    copied.zero_grad()
    F.cross_entropy(copied(example.query.x), example.query.y).backward()
    found = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(found[f"model.{name}"], parameter.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm", POLICIES)
def test_the_gradient_is_the_query_gradient_at_the_adapted_weights_to_the_bit(norm: str) -> None:
    built = learner(FOMAML, backbone=smooth("batch"), steps=2, norm=norm)
    values, example = fresh(built), task()
    fast = built.adapt(values, example.support, key=KEY)
    fixed = {name: value for name, value in fast.items() if name.startswith("state.")}

    def query(v: dict[str, torch.Tensor]) -> torch.Tensor:
        return built.query_loss(v, fixed, example, KEY, {})[0]

    found, expected = grad(lambda v: built.loss(v, example, KEY)[0])(values), grad(query)(values | fast)
    for name in built.adapted:
        if norm == "support":
            # The support set's statistics depend on the adapted weights, which the outer gradient follows.
            assert found[name].isfinite().all()
        else:
            assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(FOMAML, backbone=smooth("batch"), steps=2, norm=norm, adapt="all")
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "loop", chunk=3), looped)


def test_it_reaches_the_same_weights_as_maml_and_differs_in_the_gradient() -> None:
    first, second = (learner(cls, backbone=smooth("batch"), steps=2) for cls in (FOMAML, MAML))
    values, example = fresh(first), task()
    ours, theirs = (one.adapt(values, example.support) for one in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, two = step(first, values, tasks(2)), step(second, values, tasks(2))
    assert torch.equal(one.losses, two.losses)
    assert not torch.allclose(one.grads["model.2.weight"], two.grads["model.2.weight"], rtol=1e-3)


def test_no_graph_of_the_inner_loop_is_kept() -> None:
    built = learner(FOMAML, backbone=smooth("batch"))
    values = {name: value.requires_grad_() for name, value in double(built.init(KEY)).items()}
    for value in built.adapt(values, task().support, steps=5).values():
        node, depth = value.grad_fn, 0
        while node is not None and node.name() == "SubBackward0":
            node, depth = node.next_functions[0][0], depth + 1
        assert depth == 5
        assert node is not None
        assert node.name() == "torch::autograd::AccumulateGrad"
