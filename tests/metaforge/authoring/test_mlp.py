"""Linear layers as a function of their values: as `nn.Sequential`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.mlp import MLP, initial_linear


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_linear_layers_with_relu_between_them(bias: bool) -> None:
    mlp = MLP("part", (3, 5, 4, 2), bias)
    values = mlp.init(make_key(0))
    layers = [nn.Linear(a, b, bias=bias) for a, b in ((3, 5), (5, 4), (4, 2))]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                parameter.copy_(values.pop(f"part.{i}.{name}"))
    assert not values
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mlp(mlp.init(make_key(0)), x), plain(x))


def test_its_weights_are_uniform_as_those_of_linear_layers() -> None:
    values = MLP("part", (16, 2000)).init(make_key(0))
    for value in values.values():
        assert 0.249 < value.abs().max() <= 0.25
        assert abs(float(value.mean())) < 0.02


def test_the_inputs_of_a_convolution_are_its_channels_times_its_kernel() -> None:
    values = initial_linear("conv", (2000, 4, 2, 2), make_key(0))
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "conv.weight": (2000, 4, 2, 2),
        "conv.bias": (2000,),
    }
    assert all(0.249 < value.abs().max() <= 0.25 for value in values.values())
    assert initial_linear("conv", (2000, 4), make_key(0), bias=False).keys() == {"conv.weight"}
