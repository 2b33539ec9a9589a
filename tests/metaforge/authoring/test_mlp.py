"""Linear layers as a function of their values: as `nn.Sequential`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.mlp import MLP


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
