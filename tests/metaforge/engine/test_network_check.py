"""A network is compared with plain PyTorch: equal ones are found equal, and of others the layer is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import NormAct
from metaforge.authoring.protocols import Parts, TaskShape, TaskSpec
from metaforge.engine.network_check import Comparison, compare_module, compare_plan, moved_by_rounding
from metaforge.engine.plans import Plan
from metaforge.errors import ConfigError
from metaforge_plugins.learners.gradient.maml import MAML
from plain_networks import Growing
from toys import sgd

SPEC = TaskSpec("classification", (1, 6, 6), 3, TaskShape(3, 4, 5))


class Tokens(nn.Module):
    """Has numbers of float32 in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(x.shape[-1], 2)


EQUAL = {
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)),
    "subclass": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), NormAct(4)),
    "noise of functions": lambda: nn.Sequential(nn.Flatten(), nn.TransformerEncoderLayer(36, 2, 8)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(1, 4, 3).requires_grad_(False), nn.BatchNorm2d(4).eval()),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_networks_are_found_equal(name: str) -> None:
    network = EQUAL[name]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = compare_module(network, SPEC.x_shape)
    assert found.difference < 1e-12
    assert found.dtype == torch.float64
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_that_runs_in_float32_alone_is_compared_in_float32() -> None:
    found = compare_module(nn.Sequential(nn.Linear(6, 4), Tokens()), (6,))
    assert found.dtype == torch.float32
    assert found.difference < 1e-5


def test_the_first_layer_that_differs_is_named() -> None:
    found = compare_module(nn.Sequential(nn.Linear(6, 4), nn.Sequential(Growing(), nn.Tanh()), nn.Linear(4, 2)), (6,))
    assert found.difference > 0.1
    assert found.where == "1.0"


def test_a_refused_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key governs"):
        compare_module(nn.Sequential(nn.Linear(6, 4), nn.AlphaDropout(0.5)), (6,))


def make(network: nn.Module, spec: TaskSpec) -> MAML:
    return MAML(MAML.Config(steps=2, adapt="all"), Parts(spec, lambda: network, sgd(0.1)))


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_plans_are_compared_with_plain_autograd(plan: Plan) -> None:
    for name in EQUAL:
        network = EQUAL[name]()
        if name != "noise of functions":
            found = compare_plan(lambda spec, network=network: make(network, spec), SPEC, plan)
            # Under `fold` the second derivatives of torch's own batch norm are wrong.
            assert (found.difference < 1e-9) is not (name == "subclass" and plan == "fold"), (name, found)


def test_a_difference_is_judged_by_a_tolerance_or_by_rounding() -> None:
    assert Comparison(1e-8).within(1e-7)
    assert not Comparison(1e-6).within(1e-7)
    assert Comparison(1e-6, noise=1e-6).within(1e-7)
    assert not Comparison(1e-3, noise=1e-5).within(1e-7)
    assert not Comparison(float("inf"), noise=1.0).within(1e-7)
    assert not Comparison(float("nan")).within(1e-7)


def test_rounding_moves_parameters_by_a_little_more_than_one_bit() -> None:
    params = {"w": torch.linspace(1, 2, 50, dtype=torch.float64)}
    moved = moved_by_rounding(params)["w"] / params["w"] - 1
    assert 1e-15 < float(moved.abs().mean()) < 1e-13
    assert torch.equal(moved_by_rounding(params)["w"], moved_by_rounding(params)["w"])
