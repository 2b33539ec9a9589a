"""Gradient checkpointing: a part of a computation is repeated in the backward pass instead of keeping its activations.

The technique is that of Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. Unlike
`torch.utils.checkpoint`, this version works under the transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from metaforge.kernels.task_axis import apply_function


def recompute_in_backward(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)`, keeping only the arguments for the backward pass, which calls the function again.

    It works under `vmap` and `grad` in any order, also where the function itself takes gradients.

    Args:
        function: A pure function of nested dictionaries, tuples and lists of tensors. It must take every tensor that it
            uses as an argument; others get no gradient.
        *arguments: The arguments of the function.
    """
    leaves, structure = tree_flatten(arguments)
    output_structures: list[Any] = []

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs, output_structure = tree_flatten(function(*tree_unflatten(list(inputs), structure)))
        output_structures.append(output_structure)
        return tuple(outputs)

    outputs = apply_function(_Recompute, flat, *leaves)
    return tree_unflatten(list(outputs), output_structures[-1])


class _Recompute(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # `view_as` unwraps tensors left over from a finished functorch level; `vjp` alone would keep the wrapper.
        saved = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        floats = [index for index, tensor in enumerate(saved) if tensor.is_floating_point()]

        def of_floats(*values: Tensor) -> tuple[Tensor, ...]:
            inputs = list(saved)
            for index, value in zip(floats, values, strict=True):
                inputs[index] = value
            function: Callable[..., tuple[Tensor, ...]] = ctx.function
            return function(*inputs)

        # torch's type stub declares another number of results.
        _, pullback = vjp(of_floats, *(saved[index] for index in floats))  # type: ignore[misc]
        input_grads: list[Tensor | None] = [None] * len(saved)
        for index, input_grad in zip(floats, pullback(grads), strict=True):
            input_grads[index] = input_grad
        return (None, *input_grads)
