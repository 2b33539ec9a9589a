"""Smooth stand-ins take the place of kinks everywhere, so that differences of any network make sense."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metaforge.authoring.keys import make_key, normal
from metaforge.authoring.protocols import TaskSpec
from metaforge.testing import Subject, checks_for
from metaforge.testing.checks import gradients as kit
from metaforge.testing.smooth import Smooth
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

    with Smooth():
        found = vmap(grad(total))(X)
    torch.testing.assert_close(found, grad(lambda x: F.silu(x).square().sum())(X))
    torch.testing.assert_close(vmap(grad(total))(X), 2 * X.clamp_min(0))


def test_max_pooling_is_average_pooling_and_the_rest_is_as_it_was() -> None:
    net = nn.Sequential(nn.MaxPool1d(2), nn.LeakyReLU(0.2), nn.Tanh())
    with Smooth():
        found = functional_call(net, {}, (X,))
    pooled = F.avg_pool1d(X, 2)
    torch.testing.assert_close(found, (0.2 * pooled + 0.8 * F.silu(pooled)).tanh())


class Kinked(ToyNet):
    """A network of many units with a kink each."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())


def test_a_network_with_kinks_passes_and_would_not_without(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("backbone", "kinked", Kinked)
    (check,) = [one for one in checks_for(subject) if one.name == "meta-gradient"]
    check(subject)
    monkeypatch.setattr(kit, "Smooth", contextlib.nullcontext)
    with pytest.raises(AssertionError, match="the meta-gradient is off"):
        check(subject)
