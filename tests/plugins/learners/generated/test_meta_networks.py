"""Meta Networks: without fast weights the slow network, and the whole algorithm in plain PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import fold_in, make_key, permutation
from metaforge.authoring.protocols import Examples, Task
from metaforge_plugins.learners.generated.meta_networks import MetaNetworks
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


def built(**options: Any) -> Any:
    return learner(MetaNetworks, **{"units": 4, "hidden": 3, "samples": 6} | options)


def features(x: Tensor) -> Tensor:
    """Return two features of each number: its logarithm and sign, or a multiple of it if it is small."""
    small = x.abs() < math.exp(-7)
    logs = torch.where(small, -1.0, x.abs().clamp_min(1e-30).log() / 7)
    return torch.stack([logs, torch.where(small, x * math.exp(7), x.sign())], -1)


def plain(v: dict[str, Tensor], example: Task) -> Tensor:
    """Return the loss in plain PyTorch, one example after another; both backbones are linear layers."""
    (sx, sy), (qx, qy) = example.support, example.query
    linear = lambda w, name, x: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    body = lambda name, x: linear(v, name, x)  # noqa: E731
    fc = {name: v[f"key.0.{name}"] for name in ("weight", "bias")}
    phi: dict[str, list[Tensor]] = {name: [] for name in fc}
    u, n = body("keys", sx), len(sx)
    for i in range(n):
        r = F.linear(u, fc["weight"], fc["bias"])
        apart = [(r[j] - r[i]).square().sum() for j in range(n) if j != i]
        same = [bool(sy[j] == sy[i]) for j in range(n) if j != i]
        each = [d if s else (1 - (d + 1e-12).sqrt()).clamp_min(0) ** 2 for d, s in zip(apart, same, strict=True)]
        for name, grad in zip(fc, torch.autograd.grad(sum(each) / (n - 1), [*fc.values()]), strict=True):
            phi[name].append(features(grad.detach()))
    cell = nn.LSTM(2, 3).double()
    lstm = {"weight_ih_l0": v["d.weight_ih"], "weight_hh_l0": v["d.weight_hh"], "bias_ih_l0": v["d.bias"]}
    lstm["bias_hh_l0"] = torch.zeros_like(v["d.bias"])
    star = {}
    for name, grads in phi.items():
        sequence = torch.stack(grads).reshape(n, -1, 2)
        last = torch.func.functional_call(cell, lstm, (sequence,))[0][-1]
        star[name] = linear(v, "d_out.0", last).reshape(fc[name].shape)
    represent = lambda x: F.linear(x, **fc).relu() + F.linear(x, **star).relu()  # noqa: E731
    slow = {name: value for name, value in v.items() if name.startswith("base.")}
    fast = []
    for x, y in zip(body("model", sx), sy, strict=True):
        loss = F.cross_entropy(linear(slow, "base.1", linear(slow, "base.0", x).relu())[None], y[None])
        theta = {}
        for name, grad in zip(slow, torch.autograd.grad(loss, [*slow.values()], retain_graph=True), strict=True):
            hidden = linear(v, "m.1", linear(v, "m.0", features(grad.detach())).relu()).relu()
            theta[name] = linear(v, "m.2", hidden)[..., 0]
        fast.append(theta)
    keys, losses = represent(u), []
    for x, k, y in zip(body("model", qx), body("keys", qx), qy, strict=True):
        a = F.cosine_similarity(represent(k[None]), keys).softmax(0)
        theta = {name: sum(w * one[name] for w, one in zip(a, fast, strict=True)) for name in slow}
        h = linear(slow, "base.0", x).relu() + linear(theta, "base.0", x).relu()
        losses.append(F.cross_entropy((linear(slow, "base.1", h) + linear(theta, "base.1", h))[None], y[None]))
    return torch.stack(losses).mean()


def test_the_loss_and_its_gradient_are_those_of_plain_pytorch() -> None:
    one, example = built(backbone=lambda: nn.Linear(3, 4)), task(1)
    v = {name: value.requires_grad_() for name, value in fresh(one).items()}
    # The LSTM reads the gradients in the order that the key draws.
    order = permutation(fold_in(KEY, "samples"), 6)
    shuffled = example._replace(support=Examples(*(part[order] for part in example.support)))
    ours, theirs = one.loss(v, example, KEY)[0], plain(v, shuffled)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    both = [torch.autograd.grad(loss, [*v.values()]) for loss in (ours, theirs)]
    for name, own, other in zip(v, *both, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-11, msg=name)


def test_without_fast_weights_it_is_the_slow_network() -> None:
    one, example = built(), task()
    values = fresh(one)
    values = {name: torch.zeros_like(v) if name.startswith("m.2.") else v for name, v in values.items()}
    found = one.predict(values, one.adapt(values, example.support), example.query.x)
    expected = one.base(values, one.model(values, example.query.x))
    torch.testing.assert_close(found, expected)
    assert expected.std() > 1e-3


def test_with_one_support_example_all_queries_have_its_weights() -> None:
    one, example = built(), task()
    values = fresh(one)
    fast = one.adapt(values, Examples(example.support.x[:1], example.support.y[:1]))
    theta = {name.removeprefix("fast."): value[0] for name, value in fast.items() if name.startswith("fast.base.")}
    x = one.model(values, example.query.x)
    h = sum(F.linear(x, w["base.0.weight"], w["base.0.bias"]).relu() for w in (values, theta))
    expected = sum(F.linear(h, w["base.1.weight"], w["base.1.bias"]) for w in (values, theta))
    torch.testing.assert_close(one.predict(values, fast, example.query.x), expected)


def test_the_gradients_are_constants_unless_second_order_is_chosen() -> None:
    """With zero fast weights, whose generator has a gradient, the slow network has the gradient of its own loss."""
    example = task()

    def grads(second_order: bool) -> dict[str, Tensor]:
        one = built(second_order=second_order)
        params, state = split_state(fresh(one))
        found: dict[str, Tensor] = torch.func.grad(lambda p: one.loss(p | state, example, KEY)[0])(params)
        return found

    first, second = grads(False), grads(True)
    assert first.keys() == second.keys()
    for name in ("m.0.weight", "m.2.bias"):
        torch.testing.assert_close(first[name], second[name], rtol=1e-9, atol=1e-12)
    for name in ("base.0.weight", "key.0.weight"):
        assert not torch.allclose(first[name], second[name], rtol=1e-4)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    # With this seed no difference of the width of the comparison meets the kink of a ReLU, or a gradient close to zero.
    assert_loss_has_its_gradient(built(backbone=smooth("batch"), norm=norm, second_order=True), seed=6)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("samples", [2, 6])
def test_vectorised_equals_loop(second_order: bool, samples: int) -> None:
    one = built(backbone=smooth("batch"), second_order=second_order, samples=samples)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
