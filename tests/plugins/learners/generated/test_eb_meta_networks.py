"""Embedding-based Meta Networks: what the linear form is equal to, and both forms in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples
from metaforge_plugins.learners.generated.eb_meta_networks import EBMetaNetworks
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
FORMS = ("linear", "network")


def built(form: str = "linear", **options: Any) -> Any:
    return learner(EBMetaNetworks, **{"embedding": 4, "units": 6, "generator": form} | options)


def logits(one: Any, values: dict[str, Tensor], support: Examples, x: Tensor) -> Tensor:
    found: Tensor = one.predict(values, one.adapt(values, support), x)
    return found


def test_the_vector_e_does_not_change_the_probabilities() -> None:
    one, example = built(), task()
    values = fresh(one)
    before = logits(one, values, example.support, example.query.x).softmax(-1)
    values["u.0.bias"] = values["u.0.bias"] + torch.arange(6).double()
    torch.testing.assert_close(logits(one, values, example.support, example.query.x).softmax(-1), before)


def test_with_twice_the_identity_and_the_lengths_of_the_means_it_is_a_prototypical_network() -> None:
    one, example = built(units=4, embedding=4), task()
    values = fresh(one)
    eye = torch.eye(4).double()
    values |= {"u.0.weight": 2 * eye, "v.0.weight": eye, "u.0.bias": torch.zeros(4).double()}
    h = one.model(values, example.support.x)
    means = torch.stack([h[example.support.y == n].mean(0) for n in range(3)])
    found = logits(one, values, example.support, example.query.x) - means.square().sum(1)
    # The head of the embedding is a part of the prototypical network's backbone.
    proto = learner(ProtoNet, backbone=lambda: nn.Sequential(smooth()(), nn.Flatten(), nn.Linear(4, 4)))
    theirs = {name: values[name] for name in proto.init(KEY)}
    expected = logits(proto, theirs, example.support, example.query.x)
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_and_its_gradient_are_those_of_plain_pytorch(form: str) -> None:
    one, example = built(form, backbone=lambda: nn.Linear(3, 4)), task(1)
    v = {name: value.requires_grad_() for name, value in fresh(one).items()}
    ours = one.loss(v, example, KEY)[0]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ v[f"{name}.weight"].T + v.get(f"{name}.bias", torch.zeros(()).double())

    s, q = (linear("model.2", linear("model.0", part.x)) for part in (example.support, example.query))
    u = linear("u.0", s) if form == "linear" else torch.tanh(linear("u.0", s))
    means = torch.stack([u[example.support.y == n].mean(0) for n in range(3)])
    if form == "linear":
        out = linear("v.0", q) @ means.T
    else:
        weights = linear("weights.1", torch.relu(linear("weights.0", means)))
        out = q @ weights.T + linear("biases.1", torch.relu(linear("biases.0", means))).T
    theirs = F.cross_entropy(out, example.query.y)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(loss, [*v.values()], allow_unused=True) for loss in (ours, theirs)]
    for name, own, other in zip(v, *grads, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12, msg=name)


def test_equal_representations_give_equal_probabilities() -> None:
    one, example = built("network"), task()
    values = {name: torch.zeros_like(v) if name.startswith("u.") else v for name, v in fresh(one).items()}
    found = logits(one, values, example.support, example.query.x).softmax(-1)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 3))


@pytest.mark.parametrize("form", FORMS)
def test_other_labels_permute_the_logits_and_the_order_does_not_matter(form: str) -> None:
    one, example, order = built(form, backbone=smooth("batch")), task(), torch.tensor([2, 0, 1])
    values = fresh(one)
    expected = logits(one, values, example.support, example.query.x)
    other = example.support._replace(y=order[example.support.y])
    torch.testing.assert_close(logits(one, values, other, example.query.x), expected[:, order.argsort()])
    shuffled = Examples(*(part[torch.tensor([3, 1, 5, 0, 4, 2])] for part in example.support))
    torch.testing.assert_close(logits(one, values, shuffled, example.query.x), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(form: str, norm: str) -> None:
    assert_loss_has_its_gradient(built(form, backbone=smooth("batch"), norm=norm))


@pytest.mark.parametrize("form", FORMS)
def test_vectorised_equals_loop(form: str) -> None:
    one = built(form, backbone=smooth("batch"))
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
