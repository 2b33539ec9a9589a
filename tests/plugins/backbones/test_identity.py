"""The identity backbone."""

from __future__ import annotations

import torch

from metaforge.authoring.protocols import BackboneOptions, TaskShape, TaskSpec
from metaforge_plugins.backbones.identity import Identity


def test_it_returns_the_flattened_inputs() -> None:
    spec = TaskSpec("classification", (3, 1, 1), 5, TaskShape(5, 1, 1))
    network = Identity(BackboneOptions()).build(spec)
    x = torch.arange(6.0).reshape(2, 3, 1, 1)
    assert torch.equal(network(x), x.flatten(1))
    assert not [*network.parameters()]
