"""The convolution has torch's values, and torch's derivatives to the third order, under `vmap` in both orders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from derivatives import ORDERS, Loss, after_an_inner_step, assert_equal_derivatives
from metaforge.authoring.protocols import Params
from metaforge.kernels.convolution import Geometry, convolution

Convolution = Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]
TASKS = 2

GEOMETRIES = {
    "plain": Geometry((1, 1), (0, 0), (1, 1), 1),
    "padding": Geometry((1, 1), (1, 1), (1, 1), 1),
    "stride": Geometry((2, 2), (1, 1), (1, 1), 1),
    "stride, padding, groups": Geometry((2, 2), (2, 2), (1, 1), 2),
    "dilation": Geometry((1, 1), (0, 0), (2, 2), 1),
    "different height and width": Geometry((2, 1), (0, 2), (1, 2), 2),
}


def torchs(x: Tensor, w: Tensor, b: Tensor | None, g: Geometry) -> Tensor:
    return nn.functional.conv2d(x, w, b, g.stride, g.padding, g.dilation, g.groups)


def adapted_loss(function: Convolution, geometry: Geometry) -> Loss:
    """Return the loss of two convolutions after an inner step, the first with a bias and the second without."""

    def loss(values: Params, x: Tensor) -> Tensor:
        hidden = function(x, values["w1"], values["b1"], geometry).tanh()
        return function(hidden, values["w2"], None, GEOMETRIES["padding"]).pow(3).mean()

    return after_an_inner_step(loss)


def parameters(groups: int, filters: int = 4) -> Params:
    draw = torch.Generator().manual_seed(0)
    shapes = {"w1": (filters, 2 // groups, 3, 3), "b1": (filters,), "w2": (2, filters, 3, 3)}
    return {n: 0.5 * torch.randn(shape, dtype=torch.float64, generator=draw) for n, shape in shapes.items()}


def images(height: int = 8, width: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(TASKS, 2, 2, height, width, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_its_derivatives_are_torchs(name: str, order: str) -> None:
    geometry = GEOMETRIES[name]
    ours, reference = adapted_loss(convolution, geometry), adapted_loss(torchs, geometry)
    assert_equal_derivatives(ours, reference, parameters(geometry.groups), images(), order)


@pytest.mark.parametrize("order", ORDERS)
def test_shared_weights_that_are_larger_than_the_input_have_torchs_derivatives(order: str) -> None:
    geometry = GEOMETRIES["padding"]
    values, x = parameters(1, filters=40), images(3, 3)
    assert values["w1"].numel() * TASKS > x.numel()
    assert_equal_derivatives(adapted_loss(convolution, geometry), adapted_loss(torchs, geometry), values, x, order)


@pytest.mark.parametrize("per_task", [(True, True), (True, False), (False, True)])
def test_images_and_weights_may_be_shared_by_tasks_or_not(per_task: tuple[bool, bool]) -> None:
    x, weights = images(), torch.stack([parameters(1)["w1"] * (1 + i) for i in range(TASKS)])
    tensors = [t if batched else t[0] for t, batched in zip((x, weights), per_task, strict=True)]
    dims = tuple(0 if batched else None for batched in per_task)
    output = vmap(lambda a, b: convolution(a, b, None, GEOMETRIES["stride"]), in_dims=dims)(*tensors)
    expected = vmap(lambda a, b: torchs(a, b, None, GEOMETRIES["stride"]), in_dims=dims)(*tensors)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_images_of_one_channel_and_nan_give_torchs_values() -> None:
    x = torch.randn(2, 3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 1, 1] = float("nan")
    layer = nn.Conv2d(1, 2, 3)
    weight, bias = layer.weight.detach(), layer.bias.detach()  # type: ignore[union-attr]
    output = vmap(lambda each: convolution(each, weight, bias, GEOMETRIES["plain"]))(x)
    torch.testing.assert_close(
        output, torch.stack([torchs(each, weight, bias, GEOMETRIES["plain"]) for each in x]), equal_nan=True
    )
    assert output[0, 0].isnan().any()
