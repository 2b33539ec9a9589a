"""Relation networks: the loss of a constant score, sums over a class, and the network that compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.relation import Relation, comparison
from toys import (
    assert_equal_steps,
    double,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


def built_on_maps(ways: int = 3, **options: Any) -> Relation:
    """Return relation networks whose features are a map of 2 channels and 5 × 5 positions."""
    spec = TaskSpec("classification", (1, 5, 5), ways, TaskShape(ways, 1, 2))
    return Relation(Relation.Config(**options), Parts(spec, lambda: nn.Conv2d(1, 2, 3, padding=1)))


def images(ways: int, each: int, seed: int = 0) -> Examples:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(ways * each, 1, 5, 5, generator=draw, dtype=torch.float64)
    return Examples(x, torch.arange(ways).repeat_interleave(each))


def scores(one: Any, values: Params, support: Examples, x: Tensor) -> Tensor:
    found: Tensor = one.predict(values, one.adapt(values, support), x).sigmoid()
    return found


@pytest.mark.parametrize(("ways", "expected"), [(5, 0.16), (20, 0.0475)])
def test_a_constant_score_of_one_over_the_ways_has_the_loss_of_the_specification(ways: int, expected: float) -> None:
    one = built_on_maps(ways)
    values = double(one.init(KEY))
    (last,) = (name for name, value in values.items() if name.startswith("relation.") and value.shape == (1,))
    values[last.replace("bias", "weight")].zero_()
    values[last].fill_(torch.logit(torch.tensor(1 / ways)))
    both = images(ways, 1)._replace(), images(ways, 2, 1)
    example = task()._replace(support=both[0], query=both[1])
    torch.testing.assert_close(one.loss(values, example, KEY)[0].item(), expected, rtol=1e-6, atol=0)
    values[last].add_(0.1)
    assert one.loss(values, example, KEY)[0] > expected


def test_the_scores_are_those_of_plain_layers() -> None:
    one = built_on_maps(norm="transductive", hidden=4)
    values, support, query = fresh(one), images(3, 2), images(3, 4, 1)
    f, g = nn.Conv2d(1, 2, 3, padding=1).double(), comparison((4, 5, 5), 4).double()
    with torch.no_grad():
        for prefix, module in (("model", f), ("relation", g)):
            for name, parameter in module.named_parameters():
                parameter.copy_(values[f"{prefix}.{name}"])
    sums = torch.stack([f(support.x[support.y == n]).sum(0) for n in range(3)])
    pairs = [torch.cat([sums[n], f(x[None])[0]]) for x in query.x for n in range(3)]
    expected = g(torch.stack(pairs)).sigmoid().reshape(12, 3)
    torch.testing.assert_close(scores(one, values, support, query.x), expected, rtol=1e-9, atol=1e-12)
    loss = F.mse_loss(expected, F.one_hot(query.y, 3).double())
    example = task()._replace(support=support, query=query)
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    ours = one.loss(leaves, example, KEY)[0]
    torch.testing.assert_close(ours, loss, rtol=1e-9, atol=1e-12)
    plain = {
        f"{prefix}.{n}": p for prefix, module in (("model", f), ("relation", g)) for n, p in module.named_parameters()
    }
    assert plain.keys() == leaves.keys()
    gradients = torch.autograd.grad(ours, leaves.values())
    for name, gradient in zip(leaves, gradients, strict=True):
        (expected_gradient,) = torch.autograd.grad(loss, plain[name], retain_graph=True)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    entropy = built_on_maps(norm="transductive", hidden=4, loss="cross-entropy").loss(values, example, KEY)[0]
    torch.testing.assert_close(entropy, F.cross_entropy(expected.logit(), query.y), rtol=1e-9, atol=1e-12)


def test_the_network_of_the_paper() -> None:
    layers = comparison((128, 5, 5), 8)
    assert [tuple(p.shape) for p in layers.parameters() if p.dim() > 1] == [
        (64, 128, 3, 3),
        (64, 64, 3, 3),
        (8, 64),
        (1, 8),
    ]


@pytest.mark.parametrize("norm", ["running", "transductive"])
@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
def test_vectorised_equals_loop(norm: str, loss: str) -> None:
    one = learner(Relation, backbone=smooth("batch"), norm=norm, loss=loss)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


def test_order_does_not_matter_labels_permute_and_duplicates_double_the_sum() -> None:
    one = built_on_maps()
    values, support, query, order = fresh(one), images(3, 2), images(3, 1, 1), torch.tensor([2, 0, 1])
    expected = scores(one, values, support, query.x)
    shuffled = Examples(*(part[torch.tensor([3, 1, 5, 0, 4, 2])] for part in support))
    torch.testing.assert_close(scores(one, values, shuffled, query.x), expected)
    relabelled = support._replace(y=order[support.y])
    torch.testing.assert_close(scores(one, values, relabelled, query.x), expected[:, order.argsort()])
    twice = Examples(torch.cat([support.x, support.x]), torch.cat([support.y, support.y]))
    doubled = one.adapt(values, twice)["classes"]
    torch.testing.assert_close(doubled, 2 * one.adapt(values, support)["classes"])


def test_batch_norm_of_the_network_that_compares_keeps_running_averages() -> None:
    one = built_on_maps()
    values = fresh(one)
    state = one.loss(values, task()._replace(support=images(3, 1), query=images(3, 2, 1)), KEY)[1].state
    assert {name for name in state if name.startswith("state.relation.")}
    assert (one.norm, one.transductive) == ("running", False)
    assert built_on_maps(norm="transductive").transductive
