"""Baseline: ordinary pretraining, and in a task logistic regression on fixed features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metaforge
from metaforge.authoring.functional import split_state
from metaforge.authoring.protocols import Params
from metaforge_plugins.learners.gradient.baseline import Baseline
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


def linear(features: Tensor, values: Params) -> Tensor:
    """Return the logits of all classes."""
    return F.linear(features, values["classifier.weight"], values["classifier.bias"])


def classifier(built: Any) -> Params:
    """Return a random classifier of all classes."""
    return {name: value for name, value in fresh(built).items() if name.startswith("classifier.")}


def test_pretraining_is_that_of_plain_torch() -> None:
    built, module = pretraining(Baseline), plain_network()
    assert classifier(built)["classifier.weight"].shape == (CLASSES, 4)
    assert_pretrains(built, values_of(module) | classifier(built), module, linear)


@pytest.mark.parametrize("steps", [1, 20])
def test_the_head_of_a_task_is_logistic_regression_on_fixed_features(steps: int) -> None:
    built, module = pretraining(Baseline, lr=0.5, weight_decay=0.01), plain_network().eval()
    values, example = values_of(module) | classifier(built), numbered()
    features = module(example.support.x).detach()
    head = nn.Linear(4, 3).double()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    descent = torch.optim.SGD(head.parameters(), lr=0.5, weight_decay=0.01)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(head(features), example.support.y).backward()
        descent.step()
    fast = built.adapt(values, example.support, steps=steps)
    torch.testing.assert_close(fast["head.weight"], head.weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fast["head.bias"], head.bias.detach(), rtol=1e-9, atol=1e-12)
    expected = head(module(example.query.x)).detach()
    torch.testing.assert_close(built.predict(values, fast, example.query.x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_a_task_changes_nothing_but_its_head(norm: str) -> None:
    built = pretraining(Baseline, norm=norm)
    values, example = fresh(built), numbered()
    before = {name: value.clone() for name, value in values.items()}
    fast = built.adapt(values, example.support)
    assert all(torch.equal(values[name], value) for name, value in before.items())
    assert {"head.weight", "head.bias"} <= fast.keys()
    assert not fast.keys() & split_state(values)[0].keys()
    assert not torch.equal(fast["head.weight"], torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = pretraining(Baseline, norm=norm)
    values, batch = fresh(built), numbered_tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score"}


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    built = pretraining(Baseline, norm=norm)
    params, state = split_state(fresh(built, 3))
    assert_true_gradient(lambda p: built.loss(p | state, numbered(3), KEY)[0], params)


def test_without_a_step_no_class_is_preferred() -> None:
    built = pretraining(Baseline, lr=0.0)
    values, example = fresh(built), numbered()
    for options in ({"steps": 0}, {}):
        loss = F.cross_entropy(logits_of(built, values, example, **options), example.query.y)
        assert float(loss) == pytest.approx(math.log(3), rel=1e-12)


def test_order_and_labels_of_the_support_set() -> None:
    built = pretraining(Baseline, lr=0.5)
    assert_order_and_labels_are_only_names(built, fresh(built))


def test_wrong_labels_give_chance() -> None:
    built = pretraining(Baseline, lr=0.5, steps=10)
    assert_wrong_labels_are_chance(built, fresh(built))


def test_a_task_may_have_more_ways_than_those_of_the_training() -> None:
    values, example = fresh(pretraining(Baseline)), numbered(ways=5)
    assert logits_of(pretraining(Baseline, ways=5), values, example).shape == (15, 5)
    assert not Baseline.tags.fixed_ways


def test_a_query_alone_is_predicted_as_among_others() -> None:
    built = pretraining(Baseline)
    values, example = fresh(built), numbered()
    fast = built.adapt(values, example.support)
    together = built.predict(values, fast, example.query.x)
    torch.testing.assert_close(built.predict(values, fast, example.query.x[:1]), together[:1])
    assert not built.transductive


@pytest.mark.parametrize("name", ["baseline", "baseline-plus-plus", "fine-tune"])
def test_pretraining_helps_with_new_classes(name: str, tmp_path: Path) -> None:
    data = {"name": "glyphs", "train": 40, "test": 40, "writers": 16}
    settings = {"engine": {"threads": 1}, "train": {"ways": 40, "lr": 3e-3, "log_every": 20}}
    common: dict[str, Any] = {"backbone": "mlp", "seed": 1, "settings": settings}
    run = metaforge.train(name, data, steps=120, out=tmp_path / "run", **common)
    start = metaforge.train(name, data, steps=0, out=tmp_path / "start", **common)
    after, before = (one.evaluate(tasks=60, steps=[10])["results"][0]["scores"][-1] for one in (run, start))
    # Chance is 0.2.
    assert after["mean"] - after["ci"] > 0.35
    assert after["mean"] > before["mean"] + before["ci"]
