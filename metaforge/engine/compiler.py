"""Compilation of a pure function of tensors: traced with `make_fx`, then compiled with Inductor.

`make_fx` records the tensor operations that the function performs, gradients and `vmap` included. The compiled program
repeats these operations; none of the function's Python code runs again. Unlike `torch.compile`, this uses no Dynamo.
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
_VIEW, _RESHAPE = torch.ops.aten.view.default, torch.ops.aten.reshape.default
# A compiled function of a flat list of tensors, and the structure (a `TreeSpec`) of what it returns.
_Program = tuple[Callable[..., Any], Any]


class Compiler:
    """A compiled version of a pure function of tensors: `Compiler(function)(*arguments)`.

    The function may take and return nested dictionaries, tuples and lists of tensors. Every call must have the same
    nesting; for each new combination of shapes, strides and dtypes the function is compiled once more.

    Args:
        function: The function to compile. It must not branch on the value of a tensor, as in `if x.sum() > 0`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._programs: dict[Any, _Program] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns for these arguments, without a graph.

        Raises:
            ConfigError: There is no C++ compiler, or it cannot compile the program.
        """
        leaves, structure = tree_flatten(arguments)
        layout = tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves)
        if layout not in self._programs:
            self._programs[layout] = _compiled(self._function, leaves, structure)
        program, output_structure = self._programs[layout]
        with torch.no_grad():
            outputs = list(program(*leaves))
        if leaves[0].is_cuda:
            # A CUDA graph overwrites its outputs when it is replayed.
            outputs = [output.clone() if isinstance(output, Tensor) else output for output in outputs]
        return tree_unflatten(outputs, output_structure)


def _compiled(function: Callable[..., Any], leaves: list[Tensor], structure: Any) -> _Program:
    with warnings.catch_warnings():
        # Torch itself calls functions that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _traced_and_lowered(function, leaves, structure)


def _traced_and_lowered(function: Callable[..., Any], leaves: list[Tensor], structure: Any) -> _Program:
    """Trace the function on these inputs, rewrite the graph, and lower it with Inductor."""
    from torch._inductor import compile as inductor_compile
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
    from torch.fx.experimental.proxy_tensor import make_fx

    output_structures: list[Any] = []

    def flat(*inputs: Tensor) -> list[Any]:
        outputs, output_structure = tree_flatten(function(*tree_unflatten(list(inputs), structure)))
        output_structures.append(output_structure)
        return outputs

    with images.channels_last_kernels():
        traced = make_fx(flat)(*leaves)
    _remove_view_round_trips(traced.graph)
    if leaves[0].device.type == "cpu":
        _rewrite_transposed_products(traced.graph)
    traced.recompile()
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if leaves[0].is_cuda else None
    try:
        program = inductor_compile(traced, list[Any](leaves), options)
        if not callable(program):
            raise TypeError(f"the compiler returned {type(program).__name__}")
        program(*leaves)
    except (InvalidCxxCompiler, CppCompileError) as error:
        raise ConfigError(
            f"This step cannot be compiled: {str(error).strip().partition(chr(10))[0][:200]}",
            where="engine.compile",
            remedy="install a C++ compiler such as g++, or set engine.compile to off",
        ) from error
    return program, output_structures[-1]


def _remove_view_round_trips(graph: Any) -> None:
    """Remove chains of `view` and `permute` that end at the shape and strides that they began with.

    Inductor would copy the tensor to materialise the view in between.
    """
    views = {_VIEW, torch.ops.aten.permute.default}
    for node in graph.nodes:
        origin = node
        while origin.target in views:
            origin = origin.args[0]
            if _layout(origin) == _layout(node):
                node.replace_all_uses_with(origin)
                break
    graph.eliminate_dead_code()


def _layout(node: Any) -> tuple[Any, ...]:
    """Return shape, strides and storage offset of a node's value, in which the views of one tensor can differ."""
    value = node.meta["val"]
    return value.shape, value.stride(), value.storage_offset()


def _rewrite_transposed_products(graph: Any) -> None:
    """Rewrite the transpose of a batched matrix product as the product of the transposes: `(A B)ᵀ = Bᵀ Aᵀ`.

    The derivatives of a product contain such transposes. On a CPU, one of the two forms can be six times as slow as the
    other if the matrices are narrow.
    """
    if any(node.target is torch.ops.aten.as_strided.default for node in graph.nodes):
        # `as_strided` reads memory by strides, and the rewritten product has other strides.
        return
    for node in graph.nodes:
        if not _is_transpose(node) or node.args[0].target is not _BMM or len(node.args[0].users) > 1:
            continue
        with graph.inserting_before(node.args[0]):
            factors = [_transposed(graph, factor) for factor in reversed(node.args[0].args)]
            product = graph.call_function(_BMM, tuple(factors))
        product.meta["val"] = node.meta["val"].contiguous()
        node.replace_all_uses_with(product)
    for node in graph.nodes:
        if node.target is _VIEW:
            # The rewritten products have other strides, so a view of them may now need a copy; `reshape` makes one.
            node.target = _RESHAPE
    graph.eliminate_dead_code()


def _is_transpose(node: Any) -> bool:
    """Return whether a node transposes the matrices of a batch `[tasks, n, m]`."""
    return node.target is _TRANSPOSE and sorted(axis % 3 for axis in node.args[1:]) == [1, 2]


def _transposed(graph: Any, node: Any) -> Any:
    """Return a node for the transposes of the matrices of a batch `[tasks, n, m]`."""
    if _is_transpose(node):
        return node.args[0]
    transpose = graph.call_function(_TRANSPOSE, (node, 1, 2))
    transpose.meta["val"] = node.meta["val"].transpose(1, 2)
    return transpose
