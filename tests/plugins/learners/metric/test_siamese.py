"""Siamese networks: the paper's number of parameters, symmetry, both kinds of pairs, and verification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.siamese import Siamese, verification
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    double,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


def test_the_network_of_the_paper_has_its_number_of_parameters() -> None:
    sizes = [(1, 64, 10), (64, 128, 7), (128, 128, 4), (128, 256, 4)]

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [nn.Conv2d(*size), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers[:-1])

    built = Siamese(
        Siamese.Config(units=4096), Parts(TaskSpec("classification", (1, 105, 105), 2, TaskShape(2, 1, 1)), build)
    )
    assert sum(value.numel() for value in built.init(KEY).values()) == 38_951_745


def test_the_probability_is_symmetric_and_that_of_equal_examples_is_the_bias_alone() -> None:
    built = learner(Siamese, units=6)
    values, x = fresh(built), torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = built.model(values, x).sigmoid()
    logits = built.compare(values, h, h)
    torch.testing.assert_close(logits, logits.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.diagonal(), values["compare.bias"].expand(4), rtol=0, atol=1e-12)
    assert logits.std() > 1e-3


def plain_loss(built: Any, values: dict[str, Tensor], example: Any) -> Tensor:
    """Return the loss of all pairs, one after another, in plain PyTorch; the backbone is a linear layer."""

    def h(x: Tensor) -> Tensor:
        hidden = x @ values["model.0.weight"].T + values["model.0.bias"]
        return torch.sigmoid(hidden @ values["model.2.weight"].T + values["model.2.bias"])

    kinds: dict[bool, list[Tensor]] = {True: [], False: []}
    for one, label in zip(example.query.x, example.query.y, strict=True):
        for other, own in zip(example.support.x, example.support.y, strict=True):
            p = torch.sigmoid((h(one) - h(other)).abs() @ values["compare.weight"] + values["compare.bias"])
            same = bool(label == own)
            kinds[same].append(F.binary_cross_entropy(p, torch.tensor(float(same)).double()))
    return (torch.stack(kinds[True]).mean() + torch.stack(kinds[False]).mean()) / 2


def test_the_loss_and_its_gradient_are_those_of_plain_pytorch() -> None:
    built = learner(Siamese, backbone=lambda: nn.Linear(3, 4), units=5)
    leaves = {name: value.requires_grad_() for name, value in fresh(built).items()}
    ours, theirs = built.loss(leaves, task(1), KEY)[0], plain_loss(built, leaves, task(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    both = [torch.autograd.grad(loss, [*leaves.values()]) for loss in (ours, theirs)]
    for own, other in zip(*both, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_drawn_pairs_are_one_of_each_kind_for_every_query() -> None:
    built = learner(Siamese, pairs="drawn", units=2)
    same = (
        F.one_hot(torch.arange(3).repeat_interleave(3), 3).double() @ F.one_hot(torch.arange(3).repeat(2), 3).double().T
    )
    weights = [built.pair_weights(same, make_key(i)) for i in range(20)]
    for one in weights:
        assert ((one * same > 0).sum(1) == 1).all()
        assert ((one * (1 - same) > 0).sum(1) == 1).all()
        torch.testing.assert_close(one.sum(), torch.tensor(1.0).double())
    assert len({tuple(one.flatten().tolist()) for one in weights}) > 10
    # Every pair is drawn sooner or later.
    assert (torch.stack(weights).sum(0) > 0).all()


def test_the_prediction_is_the_class_of_the_most_similar_example_whatever_the_bias() -> None:
    built = learner(Siamese, units=6)
    values, example = fresh(built), task(2)
    fast = built.adapt(values, example.support)
    logits, pairs = built.predict(values, fast, example.query.x), built.pairs(values, fast, example.query.x, None)
    assert (logits.argmax(-1) == example.support.y[pairs.argmax(-1)]).all()
    moved = built.predict(values | {"compare.bias": values["compare.bias"] + 3}, fast, example.query.x)
    torch.testing.assert_close(moved, logits + 3)


def test_a_class_without_support_examples_is_never_predicted() -> None:
    built = learner(Siamese, units=6)
    values, example = fresh(built), task(2)
    known = Examples(example.support.x[:4], example.support.y[:4])
    logits = built.predict(values, built.adapt(values, known), example.query.x)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(-1) < 2).all()


def test_verification_gives_both_kinds_the_same_weight() -> None:
    same = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert verification(torch.tensor([[1.0, -1.0, -1.0, 1.0]]), same) == pytest.approx((1 + 2 / 3) / 2)
    assert verification(torch.full((1, 4), -1.0), same) == 0.5
    built = learner(Siamese, units=6)
    values, example = fresh(built), task(2)
    pairs = built.pairs(values, built.adapt(values, example.support), example.query.x, None)
    own = (example.query.y[:, None] == example.support.y).double()
    right = [((pairs > 0).double() == kind)[own == kind].double().mean() for kind in (0, 1)]
    torch.testing.assert_close(built.measure(values, example, KEY)["verification"], (right[0] + right[1]) / 2)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    # With this seed no two features are so close that a difference of the width of the comparison changes its sign.
    assert_loss_has_its_gradient(learner(Siamese, backbone=smooth("batch"), norm=norm, units=5), seed=4)


@pytest.mark.parametrize("pairs", ["all", "drawn"])
def test_vectorised_equals_loop(pairs: str) -> None:
    built = learner(Siamese, backbone=smooth("batch"), pairs=pairs, units=5)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (4, 3)])
def test_the_same_values_serve_any_number_of_classes_and_examples(ways: int, shots: int) -> None:
    spec = TaskSpec("classification", (3,), ways, TaskShape(ways, shots, 1))
    built = Siamese(Siamese.Config(units=4), Parts(spec, nn.Identity))
    x = torch.randn(ways * shots, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = double(learner(Siamese, backbone=nn.Identity, units=4).init(KEY))
    fast = built.adapt(values, Examples(x, torch.arange(ways).repeat(shots)))
    assert built.predict(values, fast, x).shape == (ways * shots, ways)
