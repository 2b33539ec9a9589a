"""What is rewritten before a step is compiled: the same numbers, by operations that the machine does faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metaforge.engine.compiler import _skip_round_trips, _turn_products

A = torch.arange(60, dtype=torch.float64).sin().view(3, 4, 5)
B = torch.arange(30, dtype=torch.float64).cos().view(3, 2, 5)


def turned(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).transpose(1, 2) + 1


def turned_from_behind(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a * 2, b.transpose(-1, -2)).transpose(-2, -1) + 1


def used_twice(a: Tensor, b: Tensor) -> Tensor:
    product = torch.bmm(a, b.transpose(1, 2))
    return product.transpose(1, 2) * product.sum()


def tasks_moved(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).transpose(0, 1) + 1


@pytest.mark.parametrize(
    ("function", "transposes"), [(turned, 1), (turned_from_behind, 1), (used_twice, 2), (tasks_moved, 2)]
)
def test_a_transposed_product_is_the_product_of_the_transposes(
    function: Callable[[Tensor, Tensor], Tensor], transposes: int
) -> None:
    traced = make_fx(function)(A, B)
    _turn_products(traced.graph)
    traced.recompile()
    assert torch.allclose(traced(A, B), function(A, B), rtol=1e-12, atol=1e-12)
    kept = [node for node in traced.graph.nodes if node.target is torch.ops.aten.transpose.int]
    assert len(kept) == transposes


def test_views_that_end_where_they_began_are_left_out() -> None:
    def there_and_back(a: Tensor, b: Tensor) -> Tensor:
        return a.permute(1, 0, 2).permute(1, 0, 2) @ b.view(3, 10).view(3, 2, 5).mT

    traced = make_fx(there_and_back)(A, B)
    _skip_round_trips(traced.graph)
    traced.recompile()
    assert torch.equal(traced(A, B), there_and_back(A, B))
    views = (torch.ops.aten.permute.default, torch.ops.aten.view.default)
    assert not [node for node in traced.graph.nodes if node.target in views and node.args[0].op == "placeholder"]


def strides_read(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).transpose(1, 2).as_strided((3, 8), (8, 1))


def factor_changed(a: Tensor, b: Tensor) -> Tensor:
    a = a * 1
    product = torch.bmm(a, b.transpose(1, 2))
    a.mul_(2)
    return product.transpose(1, 2) + a.sum()


@pytest.mark.parametrize("function", [strides_read, factor_changed])
def test_a_product_is_rewritten_only_where_that_is_the_same(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    traced = make_fx(function)(A, B)
    _turn_products(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(A, B), function(A, B), rtol=1e-12, atol=1e-12)
