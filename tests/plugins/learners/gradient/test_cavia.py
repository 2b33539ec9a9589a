"""CAVIA: the context alone is adapted, and the meta-gradient contains how it depends on the network."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import build_backbone
from metaforge.authoring.protocols import Params, Parts, Task, TaskShape, TaskSpec
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.backbones.conv4 import Conv4, Conv4Options
from metaforge_plugins.backbones.mlp import MLP, MLPOptions
from metaforge_plugins.learners.gradient.cavia import CAVIA, CAVIAOptions
from toys import (
    BATCH_POLICIES,
    FEATURES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    assert_true_gradient,
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
FIRST, RATE = "model.0.1.weight", 0.7


def layers(context: int = 0, norm: str = "none") -> nn.Module:
    """Return a layer with a context concatenated to its input, and the network `smooth`.

    Without the tanh between them, batch norm would remove the context, which shifts all examples alike.
    """

    class Concatenated(nn.Sequential):
        def forward(self, x: Tensor, *vectors: Tensor) -> Tensor:
            return super().forward(torch.cat([x, *(vector.expand(len(x), -1) for vector in vectors)], 1))

    first = nn.Linear(FEATURES + context, FEATURES)
    return Concatenated(first, nn.Tanh(), smooth(norm)())


def on_layers(**options: Any) -> Any:
    """Return CAVIA on a small smooth network with batch norm."""
    backbone = partial(layers, norm="batch")
    return learner(CAVIA, backbone=backbone, adapters=sgd(RATE).adapters, **{"context": 3} | options)


def on_mlp(**options: Any) -> CAVIA:
    """Return CAVIA for regression on a perceptron, as in the paper."""
    spec_, backbone = spec("regression"), MLP(MLPOptions(widths=(8, 8), activation="tanh"))
    chosen = CAVIAOptions.model_validate({"context": 4, "steps": 2, "test_steps": 2} | options)
    return CAVIA(chosen, Parts(spec_, partial(build_backbone, backbone, spec_), sgd(RATE)))


def reference_loss(values: Params, example: Task, context: int, steps: int) -> Tensor:
    """Return the query loss of algorithm 1 on the perceptron, in plain PyTorch."""

    def network(x: Tensor, phi: Tensor) -> Tensor:
        x = torch.cat([x, phi.expand(len(x), -1)], 1)
        for layer in ("model.0.1", "model.0.3"):
            x = F.linear(x, values[f"{layer}.weight"], values[f"{layer}.bias"]).tanh()
        return F.linear(x, values["model.2.weight"], values["model.2.bias"])

    phi = torch.zeros(context, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        support = F.mse_loss(network(example.support.x, phi), example.support.y)
        phi = phi - RATE * torch.autograd.grad(support, phi, create_graph=True)[0]
    return F.mse_loss(network(example.query.x, phi), example.query.y)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_plain_autograd(steps: int) -> None:
    built, example = on_mlp(steps=steps), task(1, "regression")
    values = {name: value.requires_grad_() for name, value in fresh(built).items()}
    expected = torch.autograd.grad(reference_loss(values, example, 4, steps), list(values.values()))
    loss = built.loss(values, example, KEY)[0]
    torch.testing.assert_close(loss, reference_loss(values, example, 4, steps), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss, list(values.values()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_the_context_alone_is_adapted_and_begins_at_zero_in_each_task() -> None:
    built = on_layers(steps=2)
    values, first, second = fresh(built), task(0), task(1)
    before = {name: value.clone() for name, value in values.items()}
    fast = built.adapt(values, first.support, key=KEY)
    assert fast.keys() == {"context"}
    assert fast["context"].shape == (3,)
    assert fast["context"].abs().min() > 1e-6
    built.adapt(values, second.support)
    assert torch.equal(built.adapt(values, first.support, key=KEY)["context"], fast["context"])
    assert not built.adapt(values, first.support, steps=0)["context"].any()
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert built.adapted == ()
    assert "context" not in values


@pytest.mark.parametrize("film", [False, True])
def test_without_outgoing_weights_the_context_has_no_effect_and_stays_where_it_is(film: bool) -> None:
    images = TaskSpec("classification", (1, 16, 16), 3, TaskShape(3, 1, 2))
    kind, outgoing, columns = (images, "model.0.2.film.weight", 0) if film else (spec("regression"), FIRST, FEATURES)
    backbone = Conv4(Conv4Options(filters=4)) if film else MLP(MLPOptions(widths=(8, 8)))
    parts = Parts(kind, partial(build_backbone, backbone, kind), sgd(RATE))
    built = CAVIA(CAVIAOptions(context=4, steps=2, test_steps=2), parts)
    values = fresh(built)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, *kind.x_shape, generator=draw, dtype=torch.float64)
    y = torch.arange(3).repeat(2) if film else torch.randn(6, 2, generator=draw, dtype=torch.float64)
    far = {"context": torch.ones(4, dtype=torch.float64)}
    dead = values | {outgoing: values[outgoing].clone()}
    dead[outgoing][:, columns:] = 0
    support = task()._replace(support=task().support._replace(x=x, y=y)).support
    for given, moves in ((values, True), (dead, False)):
        none, some = (built.predict(given, fast, x) for fast in (built.adapt(given, support, steps=0), far))
        assert torch.equal(none, some) is not moves
        assert bool(built.adapt(given, support)["context"].any()) is moves


def test_a_step_of_the_context_moves_the_first_bias_by_the_outgoing_weights() -> None:
    # Concatenation: the first layer computes W_x x + (b + W_φ φ), so that b moves by −α W_φ W_φᵀ ∂L/∂b.
    built, example = on_mlp(steps=1, test_steps=1), task(2, "regression")
    values = fresh(built)
    outgoing = values[FIRST][:, FEATURES:]
    start = built.adapt(values, example.support, steps=0)

    def loss(v: Params) -> Tensor:
        return F.mse_loss(built.predict(v, start, example.support.x), example.support.y)

    moved = values["model.0.1.bias"] - RATE * outgoing @ outgoing.T @ grad(loss)(values)["model.0.1.bias"]
    adapted = built.predict(values, built.adapt(values, example.support), example.query.x)
    shifted = built.predict(values | {"model.0.1.bias": moved}, start, example.query.x)
    torch.testing.assert_close(adapted, shifted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(adapted, built.predict(values, start, example.query.x))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(on_layers(steps=3, norm=norm))
    built = on_mlp(steps=2)
    assert_true_gradient(lambda v: built.loss(v, task(3, "regression"), KEY)[0], fresh(built))


@pytest.mark.parametrize("adjoint", ["unroll", "recompute", "first-order"])
@pytest.mark.parametrize("norm", [*BATCH_POLICIES, "per-step"])
def test_vectorised_equals_loop(norm: str, adjoint: str) -> None:
    built = on_layers(steps=2, norm=norm, adjoint=adjoint)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "fold", chunk=3), looped)
    assert set(looped.metrics) == {"score"}


def test_an_adapter_meta_learns_rates_of_the_context() -> None:
    rated = learner(CAVIA, backbone=layers, adapters={"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.5))}, context=3)
    values = fresh(rated)
    assert {name: len(v) for name, v in values.items() if name.startswith("adapters.")} == {
        "adapters.meta-sgd.rate.context": 3
    }
    assert_loss_has_its_gradient(rated)


def test_a_backbone_without_a_context_and_other_parameters_are_refused() -> None:
    class Plain:
        def build(self, spec: TaskSpec) -> nn.Module:
            return smooth()()

    with pytest.raises(ConfigError, match="takes no context"):
        learner(CAVIA, backbone=partial(build_backbone, Plain(), spec()))
    with pytest.raises(ValidationError):
        CAVIAOptions.model_validate({"adapt": "weights"})
