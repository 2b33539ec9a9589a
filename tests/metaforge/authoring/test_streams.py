"""Learners that see a task as one stream: its order, its loss, and what is measured along it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import Examples, Options, Params, Pass, StreamLearner, fold_in, make_key, one_hot, permutation
from metaforge.authoring.losses import accuracy_by_instance
from metaforge.authoring.protocols import Parts
from toys import assert_equal_steps, assert_loss_has_its_gradient, fresh, learner, smooth, step, task, tasks

KEY = make_key(3)


class Sums(StreamLearner):
    """Scores a class by the sum of the features that have been seen of it."""

    Config = Options

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")

    def score_stream(self, values: Params, features: Tensor, y: Tensor) -> Tensor:
        seen = (one_hot(y, self.spec.outputs, features.dtype) * features.sum(-1, keepdim=True)).cumsum(0)
        return torch.cat([torch.zeros_like(seen[:1]), seen[:-1]])

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Any = None) -> Tensor:
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        return one_hot(support.y, self.spec.outputs, features.dtype).T @ features.sum(-1)

    def predict(self, values: Params, fast: Tensor, x: Tensor, *, key: Any = None) -> Tensor:
        return fast.expand(len(x), -1)


def test_the_stream_is_all_examples_in_the_order_of_the_key() -> None:
    built, example = learner(Sums), task()
    values = fresh(built)
    logits, y, _ = built.stream(values, example, KEY, None)
    places = permutation(fold_in(KEY, "order"), 15)
    assert places.tolist() != list(range(15))
    assert torch.equal(y, torch.cat([example.support.y, example.query.y])[places])
    features = built.model(values, torch.cat([example.support.x, example.query.x])[places], Pass(None, 0, "query"))
    expected = torch.zeros(15, 3, dtype=features.dtype)
    for now in range(15):
        for before in range(now):
            expected[now, y[before]] += features[before].sum()
    assert torch.allclose(logits, expected, rtol=1e-12, atol=1e-12)


def test_the_loss_is_the_mean_over_the_stream_and_instances_are_measured_along_it() -> None:
    built, example = learner(Sums), task()
    values = fresh(built)
    logits, y, _ = built.stream(values, example, KEY, KEY)
    loss, aux = built.loss(values, example, KEY)
    assert torch.allclose(loss, F.cross_entropy(logits, y), rtol=1e-12)
    assert aux.metrics["score"] == (logits.argmax(-1) == y).double().mean()
    measured = built.measure(values, example, KEY)
    assert measured == accuracy_by_instance(logits, y)
    assert measured.keys() == {f"instance_{k}" for k in range(1, 6)} == aux.metrics.keys() - {"score"}


def test_running_statistics_change_with_the_loss_only() -> None:
    built, example = learner(Sums, backbone=smooth("batch")), task()
    values = fresh(built)
    assert built.loss(values, example, KEY)[1].state.keys() == {name for name in values if name.startswith("state.")}
    assert built.measure(values, example, KEY).keys() == {f"instance_{k}" for k in range(1, 6)}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_plan_and_finite_differences(norm: str) -> None:
    built = learner(Sums, backbone=smooth(norm))
    values, batch = fresh(built), tasks(3)
    expected = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), expected)
    assert_loss_has_its_gradient(built)
