"""Proto-MAML: without inner steps it is a prototypical network, and its meta-gradient passes through the prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import metaforge
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Parts
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.lstm_optimizer import LSTMOptimizer, LSTMOptimizerOptions
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.proto_maml import ProtoMAML
from metaforge_plugins.learners.metric.protonet import ProtoNet
from metaforge_plugins.regularizers.taml_entropy import TAMLEntropy
from metaforge_plugins.regularizers.taml_inequality import TAMLInequality
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    close,
    fresh,
    learner,
    sgd,
    smooth,
    spec,
    step,
    task,
    tasks,
)

KEY = make_key(0)
BODY = ("model.0.0.weight", "model.0.0.bias")


def built(**options: Any) -> Any:
    """Return the learner, by default with an exact meta-gradient."""
    return learner(ProtoMAML, **{"adjoint": "unroll", **options})


def on_the_plane() -> tuple[Any, Params, Examples]:
    """Return the learner with two inputs as features, and the support set of the fixture F2."""
    shape = spec(ways=2)
    parts = Parts(type(shape)(shape.kind, (2,), 2, shape.shape), nn.Identity, sgd(0.1))
    x = torch.tensor([[0, 0], [2, 0], [0, 3], [0, 5]], dtype=torch.float64)
    return ProtoMAML(ProtoMAML.Config(adapt="head"), parts), {}, Examples(x, torch.tensor([0, 0, 1, 1]))


def test_the_head_is_made_of_the_prototypes() -> None:
    one, values, support = on_the_plane()
    fast = one.adapt(values, support, steps=0)
    close(fast["model.2.weight"], 2, 0, 0, 8)
    close(fast["model.2.bias"], -1, -16)
    logits = one.predict(values, fast, torch.tensor([[1, 1]], dtype=torch.float64))
    close(logits, 1, -8)
    close(logits.log_softmax(-1), -0.000123, -9.000123)


@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_without_inner_steps_it_is_a_prototypical_network(norm: str) -> None:
    one = built(backbone=smooth("batch"), steps=0, test_steps=0, norm=norm)
    plain = learner(ProtoNet, backbone=smooth("batch"), norm=norm)
    values, example = fresh(one), task()
    renamed = {name.replace("model.0.", "model."): value for name, value in values.items()}
    assert renamed.keys() == plain.init(KEY).keys()
    ours, theirs = (
        each.predict(v, each.adapt(v, example.support), example.query.x).log_softmax(-1)
        for each, v in ((one, values), (plain, renamed))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    if norm == "running":
        return  # In training, a prototypical network then normalises support set and queries as one batch.
    found, expected = step(one, values, tasks(3)), step(plain, renamed, tasks(3))
    torch.testing.assert_close(found.losses, expected.losses)
    for name, grad in found.grads.items():
        wanted = expected.grads[name.replace("model.0.", "model.")]
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)


def reference(weights: list[Tensor], *, first_order: bool) -> Tensor:
    """Return the query loss after two inner steps on body and head, in plain PyTorch."""
    example = task()

    def body(weights: list[Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x @ weights[0].T + weights[1])

    features = body(weights, example.support.x)
    means = torch.stack([features[example.support.y == label].mean(0) for label in range(3)])
    # Copies, because the gradient of an inner step does not pass through the prototypes.
    fast = [*(weight.clone() for weight in weights), 2 * means, -(means**2).sum(1)]
    for _ in range(2):
        support = F.cross_entropy(body(fast, example.support.x) @ fast[2].T + fast[3], example.support.y)
        grads = torch.autograd.grad(support, fast, create_graph=not first_order, retain_graph=True)
        fast = [w - 0.3 * g for w, g in zip(fast, grads, strict=True)]
    return F.cross_entropy(body(fast, example.query.x) @ fast[2].T + fast[3], example.query.y)


@pytest.mark.parametrize("adjoint", ["unroll", "recompute", "first-order"])
def test_the_meta_gradient_is_that_of_plain_autograd(adjoint: str) -> None:
    one = built(steps=2, adjoint=adjoint)
    values = fresh(one)
    assert set(values) == set(BODY)
    leaves = [values[name].clone().requires_grad_() for name in BODY]
    total = reference(leaves, first_order=adjoint == "first-order")
    found, loss = torch.func.grad_and_value(lambda v: one.loss(v, task(), KEY)[0])(values)
    torch.testing.assert_close(loss, total.detach())
    for name, expected in zip(BODY, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adapt", ["weights", "all", "head", "body"])
@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str, adapt: str) -> None:
    assert_loss_has_its_gradient(built(backbone=smooth("batch"), steps=2, norm=norm, adapt=adapt))


@pytest.mark.parametrize("adjoint", ["unroll", "first-order"])
@pytest.mark.parametrize("norm", POLICIES)
def test_every_plan_gives_the_same(norm: str, adjoint: str) -> None:
    one = built(backbone=smooth("batch"), steps=2, norm=norm, adapt="all", adjoint=adjoint)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        for chunk in (None, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk), looped)
    assert set(looped.metrics) == {"score"}


def test_the_inner_loop_adapts_what_is_chosen_and_sets_the_head_once() -> None:
    for adapt, moved in (("head", {"head"}), ("body", {"body"}), ("weights", {"head", "body"})):
        one = built(adapt=adapt)
        values, support = fresh(one), task().support
        start, end = (one.adapt(values, support, steps=steps) for steps in (0, 2))
        assert set(one.model.head) <= set(start)
        changed = {name for name in end if not torch.equal(end[name], (values | start)[name])}
        parts = {"head": set(one.model.head), "body": set(BODY)}
        assert changed == set().union(*(parts[part] for part in moved))


def test_with_the_head_alone_it_is_descent_on_logits_from_the_prototypes() -> None:
    one = built(steps=1, adapt="head")
    values, (support, query) = fresh(one), task()[:2]
    features, queries = (torch.tanh(x @ values[BODY[0]].T + values[BODY[1]]) for x in (support.x, query.x))
    means = torch.stack([features[support.y == label].mean(0) for label in range(3)])
    weight, bias = 2 * means, -means.square().sum(1)
    slope = ((features @ weight.T + bias).softmax(-1) - torch.eye(3, dtype=torch.float64)[support.y]) / len(support.y)
    weight, bias = weight - 0.3 * slope.T @ features, bias - 0.3 * slope.sum(0)
    predicted = one.predict(values, one.adapt(values, support, steps=1), query.x)
    torch.testing.assert_close(predicted, queries @ weight.T + bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ways", [2, 7])
def test_the_numbers_of_ways_and_shots_may_vary(ways: int) -> None:
    values = fresh(built(steps=2))
    parts = Parts(spec(ways=ways), smooth(), sgd(0.3))
    one, example = ProtoMAML(ProtoMAML.Config(), parts), task(ways=ways)
    assert one.init(KEY).keys() == values.keys()
    # A class whose shots are all repeated keeps its prototype; so does one that is first or last.
    repeated = torch.cat([torch.arange(len(example.support.y)), torch.tensor([0, 1])])
    more = Examples(example.support.x[repeated], example.support.y[repeated])
    first, second = (one.adapt(values, support, steps=0) for support in (example.support, more))
    assert first["model.2.weight"].shape == (ways, 4)
    torch.testing.assert_close(first["model.2.weight"], second["model.2.weight"])
    assert one.predict(values, one.adapt(values, more), example.query.x).shape == (len(example.query.y), ways)


def test_the_ways_are_fixed_if_the_adapter_learns_something_of_the_head() -> None:
    adapters = {
        "sgd": (SGD(SGDOptions()), False),
        "meta-sgd": (MetaSGD(MetaSGDOptions()), True),
        "adam": (Adam(AdamOptions()), True),
        "lstm-optimizer": (LSTMOptimizer(LSTMOptimizerOptions(hidden=2)), False),
    }
    for name, (adapter, fixed) in adapters.items():
        assert built(adapters={name: adapter}).tags.fixed_ways is fixed, name
        assert built(adapters={name: adapter}, adapt="body").tags.fixed_ways is False, name
    one = built(adapters={"meta-sgd": adapters["meta-sgd"][0]})
    assert one.init(KEY)["adapters.meta-sgd.rate.model.2.weight"].shape == (3, 4)
    assert_loss_has_its_gradient(one)


def test_a_training_with_other_ways_is_refused_for_such_an_adapter(tmp_path: Path) -> None:
    settings = {"train": {"ways": 10}}
    with pytest.raises(ConfigError, match="cannot train with 10 ways for tasks of 5"):
        metaforge.train("proto-maml", "glyphs", adapters=["meta-sgd"], steps=1, settings=settings, out=tmp_path / "run")


def test_it_gives_the_terms_of_regularizers() -> None:
    regularizers = {"entropy": TAMLEntropy(TAMLEntropy.Config()), "inequality": TAMLInequality(TAMLInequality.Config())}
    one = built(steps=2, regularizers=regularizers)
    values, example = fresh(one), task()
    terms = one.loss(values, example, KEY)[1].terms
    before = one.predict(values, one.adapt(values, example.support, steps=0), example.query.x)
    torch.testing.assert_close(terms["loss_before"], F.cross_entropy(before, example.query.y))
    looped = step(one, values, tasks(3), regularizers=[*regularizers.values()])
    assert_equal_steps(step(one, values, tasks(3), "vmap", regularizers=[*regularizers.values()]), looped)
    assert_equal_steps(step(one, values, tasks(3), "fold", regularizers=[*regularizers.values()]), looped)


def test_queries_do_not_move_the_weights() -> None:
    one = built(backbone=smooth("batch"), steps=2, norm="support")
    values, example = fresh(one), task()
    params, _ = split_state(values)
    assert not any(name.startswith("model.2.") for name in params)
    fast = one.adapt(values, example.support)
    together = one.predict(values, fast, example.query.x)
    alone = torch.cat([one.predict(values, fast, x[None]) for x in example.query.x])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-14)


def test_the_implicit_adjoint_is_refused() -> None:
    with pytest.raises(ValidationError, match="first-order"):
        ProtoMAML.Config(adjoint="implicit")
