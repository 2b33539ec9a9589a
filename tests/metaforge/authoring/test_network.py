"""Networks built from a key, with a head, and with a known number of features."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import draws_noise, feature_size, input_sizes, seeded, with_head, zero_inputs
from metaforge.authoring.protocols import TaskShape, TaskSpec
from metaforge.errors import ConfigError


def test_seeded_weights_depend_on_the_key_alone_and_the_generator_is_restored() -> None:
    before = torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        with seeded(make_key(seed)):
            weights.append(nn.Linear(3, 2).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="dimensions"), seeded(make_key(0)):
        nn.init.dirac_(nn.Linear(3, 2).weight)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("outputs", [1, 5])
def test_with_head_adds_a_linear_layer_to_flattened_features(outputs: int) -> None:
    body: Callable[[], nn.Module] = lambda: nn.Conv2d(2, 3, 3)  # noqa: E731
    assert feature_size(body(), (2, 5, 6)) == 3 * 3 * 4
    module = with_head(body, outputs, (2, 5, 6))()
    assert module(torch.zeros(7, 2, 5, 6)).shape == (7, outputs)


def test_measuring_a_network_leaves_it_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = copy.deepcopy(module.state_dict())
    assert feature_size(module, (3,)) == 4
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_inputs_of_zeros_have_the_type_of_the_parameters() -> None:
    (x,) = zero_inputs(nn.Linear(3, 4).double(), (3,))
    assert x.dtype == torch.float64
    shapes = [tensor.shape for tensor in zero_inputs(nn.Identity(), (3, 5), context=4)]
    assert shapes == [(2, 3, 5), (4,)]


class Functional(nn.Module):
    """A network whose dropout is no layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.2, self.training)


@pytest.mark.parametrize(
    ("network", "noisy"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), False),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.01)), True),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0)), False),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5).eval()), False),
        (Functional(), True),
        (Functional().eval(), False),
    ],
)
def test_noise_is_found_in_layers_and_functions_and_the_network_stays_as_it_was(
    network: nn.Module, noisy: bool
) -> None:
    before, generator = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    assert draws_noise(lambda: network, (3,)) is noisy
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(generator, torch.random.get_rng_state())


def test_the_sizes_of_inputs_are_those_of_the_axes_that_a_backbone_names() -> None:
    spec = TaskSpec("classification", (3, 28, 20), 5, TaskShape(5, 1, 1))
    assert input_sizes(spec, "channels", "height", "width") == (3, 28, 20)
    with pytest.raises(ConfigError, match=r"takes inputs \[length, features\].*\[3, 28, 20\]"):
        input_sizes(spec, "length", "features")
