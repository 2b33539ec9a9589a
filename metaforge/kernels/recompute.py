"""Part of a computation that is done again for its gradient, instead of being kept: less memory for more time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_unflatten


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a pure function of nests of tensors returns, keeping only its arguments for the gradient.

    It works under every transform of the engine, gradients of gradients inside the function included. The function must
    take all tensors that it uses as arguments.
    """
    leaves, nest = tree_flatten(arguments)
    answers: list[Any] = []

    def flat(*given: Tensor) -> tuple[Tensor, ...]:
        found, answer = tree_flatten(function(*tree_unflatten(list(given), nest)))
        answers.append(answer)
        return tuple(found)

    found = _Recomputed.apply(flat, *leaves)  # type: ignore[no-untyped-call]
    return tree_unflatten(list(found), answers[-1])


class _Recomputed(torch.autograd.Function):
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
        # A view takes off what a transform that is over has put around a tensor; `vjp` alone would keep it.
        saved = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        floats = [index for index, tensor in enumerate(saved) if tensor.is_floating_point()]

        def of_floats(*given: Tensor) -> tuple[Tensor, ...]:
            whole = list(saved)
            for index, tensor in zip(floats, given, strict=True):
                whole[index] = tensor
            function: Callable[..., tuple[Tensor, ...]] = ctx.function
            return function(*whole)

        # torch's stub knows another number of answers.
        _, pull = vjp(of_floats, *(saved[index] for index in floats))  # type: ignore[misc]
        answers: list[Tensor | None] = [None] * len(saved)
        for index, answer in zip(floats, pull(grads), strict=True):
            answers[index] = answer
        return (None, *answers)
