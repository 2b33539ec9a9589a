"""Baseline++: pretraining with a cosine classifier, and in a task a new one on fixed features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.protocols import Params
from metaforge_plugins.learners.gradient.baseline_plus_plus import BaselinePlusPlus, cosines
from pretraining_toys import (
    CLASSES,
    KEY,
    assert_order_and_labels_are_only_names,
    assert_pretrains,
    assert_wrong_labels_are_chance,
    logits_of,
    numbered,
    numbered_tasks,
    plain_network,
    pretraining,
    values_of,
)
from toys import BATCH_POLICIES, assert_equal_steps, assert_true_gradient, fresh, step


def similarity(features: Tensor, weight: Tensor) -> Tensor:
    """Return the cosines by torch's own function."""
    return F.cosine_similarity(features.unsqueeze(1), weight.unsqueeze(0), dim=-1)


def scaled(features: Tensor, values: Params) -> Tensor:
    """Return the logits of all classes."""
    return values["scale"] * similarity(features, values["classifier.weight"])


def classifier(built: Any) -> Params:
    """Return a random classifier of all classes, and its scale."""
    return {name: value for name, value in fresh(built).items() if name in ("classifier.weight", "scale")}


def test_pretraining_is_that_of_plain_torch() -> None:
    built, module = pretraining(BaselinePlusPlus), plain_network()
    assert classifier(built)["classifier.weight"].shape == (CLASSES, 4)
    assert_pretrains(built, values_of(module) | classifier(built), module, scaled)


@pytest.mark.parametrize("steps", [1, 20])
def test_the_head_of_a_task_is_a_cosine_classifier_on_fixed_features(steps: int) -> None:
    built, module = pretraining(BaselinePlusPlus, lr=0.3), plain_network().eval()
    values, example = values_of(module) | classifier(built), numbered()
    features = module(example.support.x).detach()
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    weight = torch.stack([mean, mean, mean]).requires_grad_()
    descent = torch.optim.SGD([weight], lr=0.3)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(values["scale"] * similarity(features, weight), example.support.y).backward()
        descent.step()
    fast = built.adapt(values, example.support, steps=steps)
    torch.testing.assert_close(fast["head.weight"], weight.detach(), rtol=1e-9, atol=1e-12)
    expected = values["scale"] * similarity(module(example.query.x), weight).detach()
    torch.testing.assert_close(built.predict(values, fast, example.query.x), expected, rtol=1e-9, atol=1e-12)


def test_logits_are_bounded_by_the_scale_and_do_not_depend_on_lengths() -> None:
    draw = torch.Generator().manual_seed(0)
    features, weight = (10 * torch.randn(50, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    found = cosines(features, weight)
    assert found.abs().max() <= 1 + 1e-12
    assert found.abs().max() > 0.9
    lengths = torch.rand(50, 1, generator=draw, dtype=torch.float64) + 0.1
    torch.testing.assert_close(cosines(lengths * features, weight / lengths), found)
    torch.testing.assert_close(found, similarity(features, weight))
    built = pretraining(BaselinePlusPlus, scale=3.0)
    values = fresh(built)
    assert logits_of(built, values, numbered()).abs().max() <= values["scale"]


def test_features_of_length_zero_have_a_finite_gradient() -> None:
    zero, weight = torch.zeros(2, 4), torch.ones(3, 4)
    assert torch.equal(cosines(zero, weight), torch.zeros(2, 3))
    for grads in torch.func.jacrev(cosines, (0, 1))(zero, weight):
        assert grads.isfinite().all()


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_a_task_changes_nothing_but_its_head(norm: str) -> None:
    built = pretraining(BaselinePlusPlus, norm=norm)
    values, example = fresh(built), numbered()
    before = {name: value.clone() for name, value in values.items()}
    fast = built.adapt(values, example.support)
    assert all(torch.equal(values[name], value) for name, value in before.items())
    assert "head.weight" in fast
    assert not fast.keys() & split_state(values)[0].keys()


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = pretraining(BaselinePlusPlus, norm=norm)
    values, batch = fresh(built), numbered_tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score"}


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    built = pretraining(BaselinePlusPlus, norm=norm)
    params, state = split_state(fresh(built, 3))
    assert "scale" in params
    assert_true_gradient(lambda p: built.loss(p | state, numbered(3), KEY)[0], params)


def test_without_a_step_no_class_is_preferred() -> None:
    built = pretraining(BaselinePlusPlus, lr=0.0)
    values, example = fresh(built), numbered()
    for options in ({"steps": 0}, {}):
        loss = F.cross_entropy(logits_of(built, values, example, **options), example.query.y)
        assert float(loss) == pytest.approx(math.log(3), rel=1e-12)


def test_order_and_labels_of_the_support_set() -> None:
    built = pretraining(BaselinePlusPlus)
    assert_order_and_labels_are_only_names(built, fresh(built))


def test_wrong_labels_give_chance() -> None:
    built = pretraining(BaselinePlusPlus, steps=10)
    assert_wrong_labels_are_chance(built, fresh(built))


def test_a_task_may_have_more_ways_than_those_of_the_training() -> None:
    values, example = fresh(pretraining(BaselinePlusPlus)), numbered(ways=5)
    assert logits_of(pretraining(BaselinePlusPlus, ways=5), values, example).shape == (15, 5)
    assert not BaselinePlusPlus.tags.fixed_ways
