"""2d convolution whose derivatives of every order are convolutions again; under `vmap` it is a grouped convolution.

A convolution is linear in its input and in its weights. So there are three functions (the output, the gradient with
respect to the input, and the gradient with respect to the weights), and the derivatives of each are the other two.

Tasks with different weights are computed as one grouped convolution: the tasks are concatenated along the channel
dimension, and each task has its own groups. The memory format is channels-last. PyTorch's own double backward computes
grouped convolutions one group at a time, and in the contiguous format the backward pass of a strided convolution takes
twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import apply_function, merge_tasks, split_tasks

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution, each as (height, width), and its number of groups."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def of_tasks(self, tasks: int) -> Geometry:
        """Return the geometry of the grouped convolution that computes `tasks` tasks in one call."""
        return replace(self, groups=self.groups * tasks)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of images, as `torch.nn.functional.conv2d` does.

    Args:
        x: The images `[n, in, h, w]`.
        weight: The kernels `[out, in / groups, *kernel]`.
        bias: The bias `[out]`, or None.
        geometry: Stride, padding with zeros, dilation and groups.

    Returns:
        The output `[n, out, h', w']`.
    """
    output: Tensor = apply_function(_Convolution, x, weight, bias, geometry)
    return output


# x: input, w: weights, b: bias, y: output; dx, dw and dy are the gradients of the loss with respect to x, w and y. In
# the `backward` of `_InputGradient` and `_WeightGradient`, the incoming gradient has the shape of x or w, and its name.


class _Convolution(Function):
    """Computes y from x, w and b."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, g: Geometry) -> Tensor:
        return torch.convolution(x, w, b, g.stride, g.padding, g.dilation, False, (0, 0), g.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, ctx.geometry = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        to_x, to_w, to_b, _ = ctx.needs_input_grad
        return (
            apply_function(_InputGradient, dy, w, x.shape[-2:], ctx.geometry) if to_x else None,
            apply_function(_WeightGradient, dy, x, w.shape, ctx.geometry) if to_w else None,
            dy.sum((0, 2, 3)) if to_b else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor | None, g: Geometry) -> Any:
        n = info.batch_size
        if _shares_large_weights(w, in_dims[1], x, n) and in_dims[0] is not None and (b is None or in_dims[2] is None):
            y = apply_function(_Convolution, _channels_last(merge_tasks(x, in_dims[0], 0, n)), w, b, g)
            return split_tasks(y, 0, n), 0
        bias = None if b is None else merge_tasks(b, in_dims[2], 0, n)
        y = apply_function(
            _Convolution, _merge_images(x, in_dims[0], n), _merge_kernels(w, in_dims[1], n), bias, g.of_tasks(n)
        )
        return split_tasks(y, 1, n), 1


class _InputGradient(Function):
    """Computes dx from dy and w: a transposed convolution."""

    @staticmethod
    def forward(dy: Tensor, w: Tensor, size: Pair, g: Geometry) -> Tensor:
        # With a stride above 1, inputs of different sizes have outputs of one size; `output_padding` selects `size`.
        smallest = [(y - 1) * s - 2 * p + d * (k - 1) + 1 for y, s, p, d, k in _dimensions(dy, w, g)]
        output_padding = [whole - least for whole, least in zip(size, smallest, strict=True)]
        return torch.convolution(dy, w, None, g.stride, g.padding, g.dilation, True, output_padding, g.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, w, _, ctx.geometry = inputs
        ctx.save_for_backward(dy, w)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        to_y, to_w, _, _ = ctx.needs_input_grad
        return (
            apply_function(_Convolution, x, w, None, ctx.geometry) if to_y else None,
            apply_function(_WeightGradient, dy, x, w.shape, ctx.geometry) if to_w else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], dy: Tensor, w: Tensor, size: Pair, g: Geometry) -> Any:
        n = info.batch_size
        if _shares_large_weights(w, in_dims[1], dy, n) and in_dims[0] is not None:
            dx = apply_function(_InputGradient, _channels_last(merge_tasks(dy, in_dims[0], 0, n)), w, size, g)
            return split_tasks(dx, 0, n), 0
        dx = apply_function(
            _InputGradient, _merge_images(dy, in_dims[0], n), _merge_kernels(w, in_dims[1], n), size, g.of_tasks(n)
        )
        return split_tasks(dx, 1, n), 1


class _WeightGradient(Function):
    """Computes dw from dy and x."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, shape: torch.Size, g: Geometry) -> Tensor:
        like = dy.new_empty(shape)
        grads: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            dy, x, like, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (False, True, False)
        )
        return grads[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, x, _, ctx.geometry = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        to_y, to_x, _, _ = ctx.needs_input_grad
        return (
            apply_function(_Convolution, x, w, None, ctx.geometry) if to_y else None,
            apply_function(_InputGradient, dy, w, x.shape[-2:], ctx.geometry) if to_x else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], dy: Tensor, x: Tensor, shape: torch.Size, g: Geometry) -> Any:
        n = info.batch_size
        whole = torch.Size((n * shape[0], *shape[1:]))
        dw = apply_function(
            _WeightGradient, _merge_images(dy, in_dims[0], n), _merge_images(x, in_dims[1], n), whole, g.of_tasks(n)
        )
        return split_tasks(dw, 0, n), 0


def _dimensions(dy: Tensor, w: Tensor, g: Geometry) -> Any:
    """Return an iterator of (output size, stride, padding, dilation, kernel size), for the height and the width."""
    return zip(dy.shape[-2:], g.stride, g.padding, g.dilation, w.shape[-2:], strict=True)


def _merge_images(x: Tensor, task_dim: int | None, tasks: int) -> Tensor:
    """Return images `[n, tasks * channels, h, w]`, with the tasks concatenated along the channel dimension."""
    return _channels_last(merge_tasks(x, task_dim, 1, tasks))


def _merge_kernels(w: Tensor, task_dim: int | None, tasks: int) -> Tensor:
    """Return kernels `[tasks * out, in / groups, *kernel]` of the grouped convolution."""
    return _channels_last(merge_tasks(w, task_dim, 0, tasks))


def _channels_last(x: Tensor) -> Tensor:
    """Return `x` `[n, c, h, w]` in channels-last memory format."""
    last = x.movedim(1, -1)
    # With one channel both memory formats have the same layout, and PyTorch would take the tensor for a contiguous one.
    dense = last.squeeze(-1).contiguous().unsqueeze(-1) if last.shape[-1] == 1 else last.contiguous()
    return dense.movedim(-1, 1)


def _shares_large_weights(w: Tensor, task_dim: int | None, x: Tensor, tasks: int) -> bool:
    """Return whether all tasks share weights that, copied per task, would be larger than the input.

    Then the tasks are merged into the batch dimension instead, and the weights are not copied.
    """
    return task_dim is None and w.numel() * tasks > x.numel()
