"""A compiled function returns what the function returns; what is rewritten before compilation changes no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metaforge.engine.chunks import chunk_gradients
from metaforge.engine.compiler import Compiler, _remove_view_round_trips, _rewrite_transposed_products
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import assert_equal_steps, fresh, learner, smooth, step, tasks

A = torch.arange(60, dtype=torch.float64).sin().view(3, 4, 5)
B = torch.arange(30, dtype=torch.float64).cos().view(3, 2, 5)


def transposed(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).transpose(1, 2) + 1


def transposed_by_negative_dimensions(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a * 2, b.transpose(-1, -2)).transpose(-2, -1) + 1


def used_twice(a: Tensor, b: Tensor) -> Tensor:
    product = torch.bmm(a, b.transpose(1, 2))
    return product.transpose(1, 2) * product.sum()


def task_dimension_moved(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).transpose(0, 1) + 1


@pytest.mark.parametrize(
    ("function", "transposes"),
    [(transposed, 1), (transposed_by_negative_dimensions, 1), (used_twice, 2), (task_dimension_moved, 2)],
)
def test_a_transposed_product_is_rewritten_as_the_product_of_the_transposes(
    function: Callable[[Tensor, Tensor], Tensor], transposes: int
) -> None:
    traced = make_fx(function)(A, B)
    _rewrite_transposed_products(traced.graph)
    traced.recompile()
    assert torch.allclose(traced(A, B), function(A, B), rtol=1e-12, atol=1e-12)
    kept = [node for node in traced.graph.nodes if node.target is torch.ops.aten.transpose.int]
    assert len(kept) == transposes


def test_view_chains_that_restore_the_layout_are_removed() -> None:
    def there_and_back(a: Tensor, b: Tensor) -> Tensor:
        return a.permute(1, 0, 2).permute(1, 0, 2) @ b.view(3, 10).view(3, 2, 5).mT

    traced = make_fx(there_and_back)(A, B)
    _remove_view_round_trips(traced.graph)
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
def test_a_product_is_not_rewritten_where_the_result_would_differ(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    traced = make_fx(function)(A, B)
    _rewrite_transposed_products(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(A, B), function(A, B), rtol=1e-12, atol=1e-12)


def viewed_as_it_was(a: Tensor, b: Tensor) -> Tensor:
    doubled = torch.bmm(a, b.transpose(1, 2)).transpose(1, 2) * 2
    return doubled.transpose(1, 2).view(12, 2)


def test_a_view_that_the_new_strides_do_not_allow_becomes_a_copy() -> None:
    traced = make_fx(viewed_as_it_was)(A, B)
    _rewrite_transposed_products(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(A, B), viewed_as_it_was(A, B), rtol=1e-12, atol=1e-12)


# A learner, the numbers of tasks of some batches in chunks of two, and how often its step is compiled: once for each
# chunk size, not once for each batch.
COMPILED: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "batch norm in the inner loop": (lambda: learner(MAML, steps=1, backbone=smooth("batch", units=2)), (2, 4), 1),
    "noise, state and a smaller last chunk": (lambda: learner(ProtoNet, backbone=noisy), (3,), 2),
}


def noisy() -> nn.Module:
    return nn.Sequential(smooth("batch", units=2)(), nn.Dropout(0.4))


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_gives_the_same_gradients(name: str) -> None:
    make, counts, compilations = COMPILED[name]
    built = make()
    compiled, values = Compiler(chunk_gradients(built, "fold")), fresh(built)
    for count in counts:
        plain = step(built, values, tasks(count), "fold", chunk=2)
        assert_equal_steps(step(built, values, tasks(count), "fold", chunk=2, compiled=compiled), plain)
    assert len(compiled._programs) == compilations


def test_each_compiler_compiles_its_own_function_for_arguments_of_the_same_shapes() -> None:
    doubled, squared = Compiler(lambda x: {"y": 2 * x}), Compiler(lambda x: {"y": x * x})
    x = torch.tensor([3.0])
    assert (float(doubled(x)["y"]), float(squared(x)["y"]), float(doubled(x)["y"])) == (6.0, 9.0, 6.0)
