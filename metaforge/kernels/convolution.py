"""Convolution of many tasks at once, with derivatives of every order that are convolutions again.

A convolution is linear in its input and in its weights, so its derivatives are three functions that lead to one
another. Each runs for a batch of tasks as one grouped convolution, channels innermost in memory. Torch's own derivative
of a derivative takes the groups one at a time, and in its usual order of memory the backward pass of a strided
convolution takes twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import applied, folded, unfolded

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over an image: (height, width) of each setting, and the number of groups."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def apart(self, tasks: int) -> Geometry:
        """Return the geometry of that many tasks side by side."""
        return replace(self, groups=self.groups * tasks)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return `[n, out, h', w']` of `x` `[n, in, h, w]` and `weight` `[out, in / groups, *kernel]`."""
    found: Tensor = applied(_Forward, x, weight, bias, geometry)
    return found


# x: input, w: weights, y: output; b: bias. `dx` is the gradient to x.


class _Forward(Function):
    """y of x and w."""

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
            applied(_ToInput, dy, w, x.shape[-2:], ctx.geometry) if to_x else None,
            applied(_ToWeights, dy, x, w.shape, ctx.geometry) if to_w else None,
            dy.sum((0, 2, 3)) if to_b else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor | None, g: Geometry) -> Any:
        n = info.batch_size
        if _shared(w, at[1], x, n) and at[0] is not None and (b is None or at[2] is None):
            y = applied(_Forward, _innermost(folded(x, at[0], 0, n)), w, b, g)
            return unfolded(y, 0, n), 0
        bias = None if b is None else folded(b, at[2], 0, n)
        y = applied(_Forward, _images(x, at[0], n), _kernels(w, at[1], n), bias, g.apart(n))
        return unfolded(y, 1, n), 1


class _ToInput(Function):
    """dx of dy and w."""

    @staticmethod
    def forward(dy: Tensor, w: Tensor, size: Pair, g: Geometry) -> Tensor:
        reach = [(y - 1) * s - 2 * p + d * (k - 1) + 1 for y, s, p, d, k in _axes(dy, w, g)]
        rest = [whole - reached for whole, reached in zip(size, reach, strict=True)]
        return torch.convolution(dy, w, None, g.stride, g.padding, g.dilation, True, rest, g.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, w, _, ctx.geometry = inputs
        ctx.save_for_backward(dy, w)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        to_y, to_w, _, _ = ctx.needs_input_grad
        return (
            applied(_Forward, x, w, None, ctx.geometry) if to_y else None,
            applied(_ToWeights, dy, x, w.shape, ctx.geometry) if to_w else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], dy: Tensor, w: Tensor, size: Pair, g: Geometry) -> Any:
        n = info.batch_size
        if _shared(w, at[1], dy, n) and at[0] is not None:
            dx = applied(_ToInput, _innermost(folded(dy, at[0], 0, n)), w, size, g)
            return unfolded(dx, 0, n), 0
        dx = applied(_ToInput, _images(dy, at[0], n), _kernels(w, at[1], n), size, g.apart(n))
        return unfolded(dx, 1, n), 1


class _ToWeights(Function):
    """dw of dy and x."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, shape: torch.Size, g: Geometry) -> Tensor:
        like = dy.new_empty(shape)
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            dy, x, like, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (False, True, False)
        )
        return found[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, x, _, ctx.geometry = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        to_y, to_x, _, _ = ctx.needs_input_grad
        return (
            applied(_Forward, x, w, None, ctx.geometry) if to_y else None,
            applied(_ToInput, dy, w, x.shape[-2:], ctx.geometry) if to_x else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], dy: Tensor, x: Tensor, shape: torch.Size, g: Geometry) -> Any:
        n = info.batch_size
        whole = torch.Size((n * shape[0], *shape[1:]))
        dw = applied(_ToWeights, _images(dy, at[0], n), _images(x, at[1], n), whole, g.apart(n))
        return unfolded(dw, 0, n), 0


def _axes(dy: Tensor, w: Tensor, g: Geometry) -> Any:
    return zip(dy.shape[-2:], g.stride, g.padding, g.dilation, w.shape[-2:], strict=True)


def _images(x: Tensor, at: int | None, tasks: int) -> Tensor:
    """Return the images of all tasks side by side, channels innermost."""
    return _innermost(folded(x, at, 1, tasks))


def _kernels(w: Tensor, at: int | None, tasks: int) -> Tensor:
    return _innermost(folded(w, at, 0, tasks))


def _innermost(x: Tensor) -> Tensor:
    """Return `x` `[n, c, h, w]` with the second axis innermost in memory."""
    apart = x.movedim(1, -1)
    # Of one channel both orders are one, and torch would take it for the other.
    dense = apart.squeeze(-1).contiguous().unsqueeze(-1) if apart.shape[-1] == 1 else apart.contiguous()
    return dense.movedim(-1, 1)


def _shared(w: Tensor, at: int | None, x: Tensor, tasks: int) -> bool:
    """Return whether tasks share weights that are more than what they are applied to, and not worth a copy for each."""
    return at is None and w.numel() * tasks > x.numel()
