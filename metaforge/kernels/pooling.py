"""Max pooling and ReLU whose derivatives of every order are computed by one kernel each, for all tasks in one call.

Both are piecewise linear: the index of the maximum, and whether an input is positive, have no derivative. Under `vmap`
the tasks are concatenated along the channel dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import apply_function, merge_tasks, split_tasks


def max_pool(x: Tensor, size: int) -> Tensor:
    """Return the maximum of each window of `size` times `size`, as `torch.nn.functional.max_pool2d(x, size)` does.

    The gradient goes to the first of equal maxima.

    Args:
        x: The images `[n, c, h, w]`.
        size: Height, width and stride of the windows.

    Returns:
        The maxima `[n, c, h // size, w // size]`.
    """
    output: Tensor = apply_function(_MaxPool, x, size)[0]
    return output


def relu(x: Tensor) -> Tensor:
    """Return the positive part of `x` `[n, c, h, w]`, as `torch.relu` does."""
    output: Tensor = apply_function(_ReLU, x)
    return output


# Custom operators, so that Inductor cannot inline them and compute the maximum again in each consumer.


@torch.library.custom_op("metaforge::max_pool", mutates_args=())
def _max_pool(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the maximum of each window and its index in the flattened image."""
    output: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, (size, size))
    return output


@_max_pool.register_fake
def _(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    output: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, (size, size))
    return output


@torch.library.custom_op("metaforge::max_unpool", mutates_args=())
def _max_unpool(dy: Tensor, x: Tensor, index: Tensor, size: int) -> Tensor:
    """Return zeros like `x` with each entry of `dy` at the maximum of its window."""
    output: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        dy, x, (size, size), (size, size), (0, 0), (1, 1), False, index
    )
    return output


@_max_unpool.register_fake
def _(dy: Tensor, x: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.empty_like(x)


class _MaxPool(Function):
    """Computes the maximum of each window, and its index."""

    @staticmethod
    def forward(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = _max_pool(x, size)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.size = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return apply_function(_MaxUnpool, dy, *ctx.saved_tensors, ctx.size), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, size: int) -> Any:
        n = info.batch_size
        y, index = apply_function(_MaxPool, merge_tasks(x, in_dims[0], 1, n), size)
        return (split_tasks(y, 1, n), split_tasks(index, 1, n)), (1, 1)


class _MaxUnpool(Function):
    """The derivative of `_MaxPool`: scatters each entry to the index of the maximum of its window."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, index: Tensor, size: int) -> Tensor:
        output: Tensor = _max_unpool(dy, x, index, size)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, index, ctx.size = inputs
        ctx.save_for_backward(x, index)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        return apply_function(_Gather, h, *ctx.saved_tensors, ctx.size), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], dy: Tensor, x: Tensor, index: Tensor, size: int) -> Any:
        n = info.batch_size
        merged = (merge_tasks(t, d, 1, n) for t, d in zip((dy, x, index), in_dims, strict=False))
        return split_tasks(apply_function(_MaxUnpool, *merged, size), 1, n), 1


class _Gather(Function):
    """The derivative of `_MaxUnpool`: gathers the entry at the index of each window."""

    @staticmethod
    def forward(h: Tensor, x: Tensor, index: Tensor, size: int) -> Tensor:
        return h.flatten(2).gather(2, index.flatten(2)).view(index.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, index, ctx.size = inputs
        ctx.save_for_backward(x, index)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return apply_function(_MaxUnpool, dy, *ctx.saved_tensors, ctx.size), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], h: Tensor, x: Tensor, index: Tensor, size: int) -> Any:
        n = info.batch_size
        merged = (merge_tasks(t, d, 1, n) for t, d in zip((h, x, index), in_dims, strict=False))
        return split_tasks(apply_function(_Gather, *merged, size), 1, n), 1


class _ReLU(Function):
    """Computes the positive part."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        output: Tensor = apply_function(_Threshold, dy, *ctx.saved_tensors)
        return output

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor) -> Any:
        n = info.batch_size
        return split_tasks(apply_function(_ReLU, merge_tasks(x, in_dims[0], 1, n)), 1, n), 1


class _Threshold(Function):
    """The derivative of `_ReLU`, and of itself: keeps a gradient where the output `y` is positive, else it is zero."""

    @staticmethod
    def forward(dy: Tensor, y: Tensor) -> Tensor:
        # The operator that torch itself uses, in one pass. It also keeps the gradient where `y` is NaN.
        output: Tensor = torch.ops.aten.threshold_backward(dy, y, 0)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, None]:
        return apply_function(_Threshold, h, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], dy: Tensor, y: Tensor) -> Any:
        n = info.batch_size
        merged = (merge_tasks(t, d, 1, n) for t, d in zip((dy, y), in_dims, strict=True))
        return split_tasks(apply_function(_Threshold, *merged), 1, n), 1
