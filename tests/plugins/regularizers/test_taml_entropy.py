"""TAML by entropy: the sign of the entropies, and the meta-gradient with them, by every plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import metaforge
from metaforge.authoring.keys import make_key
from metaforge.errors import ConfigError
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.regularizers.taml_entropy import TAMLEntropy
from toys import assert_equal_steps, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)
NAMES = ("model.0.0.weight", "model.0.0.bias", "model.2.weight", "model.2.bias")


def entropy(weight: float = 0.7) -> TAMLEntropy:
    """Return the regularizer."""
    return TAMLEntropy(TAMLEntropy.Config(weight=weight))


def built(cls: type[Any], regularizer: TAMLEntropy, **options: Any) -> Any:
    """Return a learner that gives the terms of the regularizer."""
    return learner(cls, regularizers={"taml-entropy": regularizer}, **options)


def logits(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return the logits of the toy network in plain PyTorch."""
    first, shift, second, bias = weights
    return torch.tanh(x @ first.T + shift) @ second.T + bias


def mean_entropy(scores: Tensor) -> Tensor:
    """Return the mean entropy of the distributions that logits stand for."""
    return torch.distributions.Categorical(logits=scores).entropy().mean()


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_the_meta_gradient_is_that_of_plain_autograd(cls: type[Any]) -> None:
    regularizer = entropy()
    one = built(cls, regularizer, steps=2)
    values, batch = fresh(one), tasks(3)
    leaves, total = [values[name].clone().requires_grad_() for name in NAMES], torch.zeros((), dtype=torch.float64)
    for example in (task(seed) for seed in range(3)):
        fast = leaves
        for _ in range(2):
            loss = F.cross_entropy(logits(fast, example.support.x), example.support.y)
            grads = torch.autograd.grad(loss, fast, create_graph=cls is MAML, retain_graph=True)
            fast = [w - 0.3 * g for w, g in zip(fast, grads, strict=True)]
        after, before = logits(fast, example.query.x), logits(leaves, example.query.x)
        total = total + F.cross_entropy(after, example.query.y) / 3
        total = total + 0.7 * (mean_entropy(after) - mean_entropy(before)) / 3
    expected = torch.autograd.grad(total, leaves)
    found = step(one, values, batch, regularizers=[regularizer])
    for name, grad in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_every_plan_gives_the_same(cls: type[Any]) -> None:
    regularizer = entropy()
    one = built(cls, regularizer, backbone=smooth("batch"), steps=2)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch, regularizers=[regularizer])
    for plan in ("vmap", "fold"):
        for chunk in (None, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk, regularizers=[regularizer]), looped)


def test_without_a_weight_it_is_the_learner_itself_to_the_bit() -> None:
    regularizer = entropy(0.0)
    one = built(MAML, regularizer, steps=2)
    values, batch = fresh(one), tasks(3)
    ours, theirs = step(one, values, batch, regularizers=[regularizer]), step(learner(MAML, steps=2), values, batch)
    assert torch.equal(ours.losses, theirs.losses)
    assert all(torch.equal(ours.grads[name], grad) for name, grad in theirs.grads.items())


def test_entropy_is_wanted_before_the_adaptation_and_not_after_it() -> None:
    low, high = torch.tensor([0.2, 0.4]), torch.tensor([1.0, 1.2])
    combine = entropy(2.0).combine
    assert float(combine(low, {"entropy_before": high, "entropy_after": low})) == pytest.approx(-1.6)
    assert float(combine(low, {"entropy_before": low, "entropy_after": high})) == pytest.approx(1.6)


def test_a_head_of_zeros_is_as_uncertain_as_can_be() -> None:
    one = built(MAML, entropy(), steps=1)
    values = {name: torch.zeros_like(v) if name in one.model.head else v for name, v in fresh(one).items()}
    terms = one.loss(values, task(), KEY)[1].terms
    assert float(terms["entropy_before"]) == pytest.approx(math.log(3), rel=1e-12)
    assert terms["entropy_after"] < terms["entropy_before"]


@pytest.mark.parametrize("name", ["taml-entropy", "taml-inequality"])
@pytest.mark.parametrize("chosen", ["protonet", "reptile"])
def test_a_learner_without_the_terms_is_refused_by_name(chosen: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name!r} reads .*, which the learner {chosen!r} does not give"):
        metaforge.train(chosen, "glyphs", regularizers=[name], steps=1, out=tmp_path / "run")


def test_tasks_without_classes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="entropy_after and entropy_before, which only predictions of classes have"):
        metaforge.train("maml", "sinusoid", regularizers=["taml-entropy"], steps=1, out=tmp_path / "run")
