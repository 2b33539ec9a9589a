"""The protocol of backbones: a model can be made of whatever `build` returns."""

from __future__ import annotations

import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.protocols import Backbone, Options, TaskSpec
from toys import spec


class OneLayer(Backbone):
    """One linear layer with batch norm."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Linear(spec.x_shape[0], 4), nn.BatchNorm1d(4))


def test_a_model_is_made_of_a_backbone() -> None:
    backbone, task_spec = OneLayer(Options()), spec()
    model = Model(lambda: backbone.build(task_spec))
    values = model.init(make_key(0))
    assert set(values) == {"model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias"}
    assert model(values, torch.ones(2, *task_spec.x_shape)).shape == (2, 4)


def test_initial_weights_depend_on_the_key_and_the_generator_is_restored() -> None:
    model = Model(lambda: OneLayer(Options()).build(spec()))
    before = torch.get_rng_state()
    first, same, other = (model.init(make_key(seed))["model.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
