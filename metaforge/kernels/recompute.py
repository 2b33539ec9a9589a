"""Gradient checkpointing: a part of a computation is repeated in the backward pass instead of keeping its activations.

The technique is that of Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. Unlike
`torch.utils.checkpoint`, this version works under the transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
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
        # Autograd refuses an input that a function returns as it is, such as a state that does not change.
        given = {id(tensor) for tensor in inputs}
        return tuple(output.view_as(output) if id(output) in given else output for output in outputs)

    outputs = apply_function(_Recompute, flat, *leaves)
    return tree_unflatten(list(outputs), output_structures[-1])


class _Recompute(torch.autograd.Function):
    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Recompute the function of all tasks; every output has a task dimension.

        Torch's generated rule would leave out that of an output that is equal for all tasks, such as a state that only
        depends on shared values, and would then add its gradient once for each task.
        """
        # The first argument is the function itself.
        dims = in_dims[1:]
        outputs = apply_function(_Recompute, vmap(function, in_dims=dims, randomness=info.randomness), *inputs)
        return outputs, (0,) * len(outputs)

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.float_outputs = [tensor.is_floating_point() for tensor in output]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # `view_as` unwraps tensors left over from a finished functorch level; `vjp` alone would keep the wrapper.
        saved = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        floats = [index for index, tensor in enumerate(saved) if tensor.is_floating_point()]

        def of_floats(*values: Tensor) -> tuple[Tensor, ...]:
            inputs = list(saved)
            for index, value in zip(floats, values, strict=True):
                inputs[index] = value
            # Outputs of integers, such as a count, have no gradient.
            return tuple(output for output in ctx.function(*inputs) if output.is_floating_point())

        # torch's type stub declares another number of results.
        _, pullback = vjp(of_floats, *(saved[index] for index in floats))  # type: ignore[misc]
        input_grads: list[Tensor | None] = [None] * len(saved)
        grads = tuple(grad for grad, is_float in zip(grads, ctx.float_outputs, strict=True) if is_float)
        for index, input_grad in zip(floats, pullback(grads), strict=True):
            input_grads[index] = input_grad
        return (None, *input_grads)
