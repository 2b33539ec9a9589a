"""Compilation of a step: its arithmetic is traced once for each shape of its inputs, and turned into machine code.

What is traced are the operations on tensors that a learner comes to under the engine's transforms, gradients and all:
however it is written, nothing of its Python runs again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metaforge.authoring.layers import images
from metaforge.errors import ConfigError

_BMM, _TRANSPOSE = torch.ops.aten.bmm.default, torch.ops.aten.transpose.int
_Made = tuple[Callable[..., Any], Any]


class Compiler:
    """Calls a pure function of tensors, compiled; one of these serves one function."""

    def __init__(self) -> None:
        self._made: dict[Any, _Made] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns for these arguments, nests of tensors of any shape."""
        leaves, nest = tree_flatten(arguments)
        key = tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves)
        if key not in self._made:
            self._made[key] = _compiled(function, leaves, nest)
        run, answer = self._made[key]
        with torch.no_grad():
            found = list(run(*leaves))
        if leaves[0].is_cuda:
            # The next replay of a CUDA graph writes over its answers.
            found = [one.clone() if isinstance(one, Tensor) else one for one in found]
        return tree_unflatten(found, answer)


def _compiled(function: Callable[..., Any], leaves: list[Tensor], nest: Any) -> _Made:
    with warnings.catch_warnings():
        # Torch uses what it deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _lowered(function, leaves, nest)


def _lowered(function: Callable[..., Any], leaves: list[Tensor], nest: Any) -> _Made:
    from torch._inductor import compile as lowered
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
    from torch.fx.experimental.proxy_tensor import make_fx

    answers: list[Any] = []

    def flat(*given: Tensor) -> list[Any]:
        found, answer = tree_flatten(function(*tree_unflatten(list(given), nest)))
        answers.append(answer)
        return found

    with images.together():
        traced = make_fx(flat)(*leaves)
    _skip_round_trips(traced.graph)
    if leaves[0].device.type == "cpu":
        _turn_products(traced.graph)
    traced.recompile()
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if leaves[0].is_cuda else None
    try:
        made = lowered(traced, list[Any](leaves), options)
        if not callable(made):
            raise TypeError(f"the compiler returned {type(made).__name__}")
        made(*leaves)
    except (InvalidCxxCompiler, CppCompileError) as error:
        raise ConfigError(
            f"This step cannot be compiled: {str(error).strip().partition(chr(10))[0][:200]}",
            where="engine.compile",
            remedy="install a C++ compiler such as g++, or set engine.compile to off",
        ) from error
    return made, answers[-1]


def _skip_round_trips(graph: Any) -> None:
    """Take out chains of views that end where they began: the compiler would keep a copy of what lies between."""
    views = {torch.ops.aten.view.default, torch.ops.aten.permute.default}
    for node in graph.nodes:
        origin = node
        while origin.target in views:
            origin = origin.args[0]
            if _place(origin) == _place(node):
                node.replace_all_uses_with(origin)
                break
    graph.eliminate_dead_code()


def _place(node: Any) -> tuple[Any, ...]:
    """Return what tells views of the same memory apart."""
    value = node.meta["val"]
    return value.shape, value.stride(), value.storage_offset()


def _turn_products(graph: Any) -> None:
    """Write the transpose of a batched product as the product of the transposes.

    Derivatives of a product come as such, and a product of narrow matrices on a CPU may take six times as long the one
    way round as the other.
    """
    if any(node.target is torch.ops.aten.as_strided.default for node in graph.nodes):
        # It reads memory by strides, which are others afterwards.
        return
    for node in graph.nodes:
        if not _turns(node) or node.args[0].target is not _BMM or len(node.args[0].users) > 1:
            continue
        with graph.inserting_before(node.args[0]):
            turned = [_turned(graph, factor) for factor in reversed(node.args[0].args)]
            product = graph.call_function(_BMM, tuple(turned))
        product.meta["val"] = node.meta["val"].contiguous()
        node.replace_all_uses_with(product)
    graph.eliminate_dead_code()


def _turns(node: Any) -> bool:
    """Return whether a node transposes matrices `[tasks, n, m]`."""
    return node.target is _TRANSPOSE and sorted(axis % 3 for axis in node.args[1:]) == [1, 2]


def _turned(graph: Any, node: Any) -> Any:
    """Return the transpose of matrices `[tasks, n, m]`."""
    if _turns(node):
        return node.args[0]
    turned = graph.call_function(_TRANSPOSE, (node, 1, 2))
    turned.meta["val"] = node.meta["val"].transpose(1, 2)
    return turned
