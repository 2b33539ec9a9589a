"""The multi-layer perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import TaskShape, TaskSpec
from metaforge_plugins.backbones.mlp import MLP, MLPOptions

WAVE = TaskSpec("regression", (1,), 1, TaskShape(1, 10, 10))


def test_the_sinusoid_network_has_1761_parameters() -> None:
    network = with_head(lambda: MLP(MLPOptions()).build(WAVE), 1, (1,))()
    assert sum(p.numel() for p in network.parameters()) == 1761
    assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [40, 40, 1]
    assert network(torch.zeros(7, 1)).shape == (7, 1)


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_images_are_flattened(activation: str, kind: type[nn.Module]) -> None:
    spec = TaskSpec("classification", (1, 6, 5), 5, TaskShape(5, 1, 1))
    network = MLP(MLPOptions(widths=(8, 4), activation=activation)).build(spec)  # type: ignore[arg-type]
    assert network(torch.zeros(3, 1, 6, 5)).shape == (3, 4)
    assert sum(isinstance(m, kind) for m in network) == 2  # type: ignore[arg-type]


def test_a_context_is_a_part_of_the_input() -> None:
    network = MLP(MLPOptions(widths=(8, 4))).build(WAVE, context=3)
    x, context = torch.randn(5, 1), torch.randn(3)
    joined = torch.cat([x, context.repeat(5, 1)], 1)
    torch.testing.assert_close(network(x, context), nn.Sequential.forward(network, joined))  # type: ignore[arg-type]
    assert next(network.parameters()).shape == (8, 4)


def test_without_layers_the_features_are_the_input() -> None:
    network = MLP(MLPOptions(widths=())).build(TaskSpec("classification", (1, 6, 5), 5, TaskShape(5, 1, 1)))
    x = torch.randn(3, 1, 6, 5)
    assert torch.equal(network(x), x.flatten(1))
    assert not list(network.parameters())
