"""Tests of the smooth replacements for ReLU and max pooling, and of the check that uses them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metaforge.authoring.keys import make_key, normal
from metaforge.authoring.protocols import TaskSpec
from metaforge.testing import Subject, checks_for
from metaforge.testing.checks import gradients
from metaforge.testing.differences import Comparison, compare
from metaforge.testing.smooth import SmoothMode
from metaforge.testing.toy import ToyNet

X = normal(make_key(0), (3, 2, 4), torch.float64)


@pytest.mark.parametrize(
    "rectify",
    [torch.relu, F.relu, Tensor.relu, nn.ReLU(), lambda x: F.relu(x, inplace=True), nn.ReLU(inplace=True)],
    ids=["torch", "functional", "method", "module", "inplace", "inplace-module"],
)
def test_relu_in_every_spelling_is_smooth_under_transforms(rectify: object) -> None:
    def total(x: Tensor) -> Tensor:
        return rectify(1.0 * x).square().sum()  # type: ignore[operator]

    with SmoothMode():
        found = vmap(grad(total))(X)
    torch.testing.assert_close(found, grad(lambda x: F.silu(x).square().sum())(X))
    torch.testing.assert_close(vmap(grad(total))(X), 2 * X.clamp_min(0))


def test_max_pooling_is_average_pooling_and_other_functions_are_unchanged() -> None:
    net = nn.Sequential(nn.MaxPool1d(2), nn.LeakyReLU(0.2), nn.Tanh())
    with SmoothMode():
        found = functional_call(net, {}, (X,))
    pooled = F.avg_pool1d(X, 2)
    torch.testing.assert_close(found, (0.2 * pooled + 0.8 * F.silu(pooled)).tanh())


class Kinked(ToyNet):
    """A network with many ReLU units."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())


def test_the_first_estimates_for_a_network_with_relus_are_right_only_with_the_replacements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = Subject("backbone", "kinked", Kinked)
    (check,) = [check for check in checks_for(subject) if check.name == "meta-gradient"]
    lengths: list[int] = []

    def recorded(*arguments: Any, **named: Any) -> Comparison:
        found = compare(*arguments, **named)
        lengths.append(len(found.estimates))
        return found

    monkeypatch.setattr(gradients, "compare", recorded)
    check(subject)
    assert set(lengths) == {1}
    lengths.clear()
    # Without the replacements there are kinks within the first step, and some estimates are wrong.
    monkeypatch.setattr(gradients, "SmoothMode", contextlib.nullcontext)
    check(subject)
    assert max(lengths) > 1
