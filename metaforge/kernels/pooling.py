"""Max pooling and ReLU of many tasks side by side, with derivatives of every order that are of the same kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import applied, folded, unfolded


def max_pool(x: Tensor, size: int) -> Tensor:
    """Return `[n, c, h // size, w // size]`: the greatest (the first of equal ones) of each window of `x`."""
    found: Tensor = applied(_Pool, x, size)[0]
    return found


def positive(x: Tensor) -> Tensor:
    """Return the positive part of `x` `[n, c, h, w]`."""
    found: Tensor = applied(_Positive, x)
    return found


# Two kernels that a compiler leaves as they are: it would find the greatest anew for each entry that reads it.


@torch.library.custom_op("metaforge::max_pool", mutates_args=())
def _max_pool(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the greatest of each window, and where it stands."""
    found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, (size, size))
    return found


@_max_pool.register_fake
def _(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, (size, size))
    return found


@torch.library.custom_op("metaforge::max_unpool", mutates_args=())
def _max_unpool(dy: Tensor, x: Tensor, place: Tensor, size: int) -> Tensor:
    """Return each entry of `dy` put where its window of `x` had the greatest."""
    found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        dy, x, (size, size), (size, size), (0, 0), (1, 1), False, place
    )
    return found


@_max_unpool.register_fake
def _(dy: Tensor, x: Tensor, place: Tensor, size: int) -> Tensor:
    return torch.empty_like(x)


class _Pool(Function):
    """The greatest of each window, and where that stands."""

    @staticmethod
    def forward(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _max_pool(x, size)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.size = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return applied(_Unpool, dy, *ctx.saved_tensors, ctx.size), None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], x: Tensor, size: int) -> Any:
        n = info.batch_size
        y, place = applied(_Pool, folded(x, at[0], 1, n), size)
        return (unfolded(y, 1, n), unfolded(place, 1, n)), (1, 1)


class _Unpool(Function):
    """Each entry put where its window had the greatest."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, place: Tensor, size: int) -> Tensor:
        found: Tensor = _max_unpool(dy, x, place, size)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, place, ctx.size = inputs
        ctx.save_for_backward(x, place)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        return applied(_Pick, h, *ctx.saved_tensors, ctx.size), None, None, None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], dy: Tensor, x: Tensor, place: Tensor, size: int) -> Any:
        n = info.batch_size
        wide = (folded(t, a, 1, n) for t, a in zip((dy, x, place), at, strict=False))
        return unfolded(applied(_Unpool, *wide, size), 1, n), 1


class _Pick(Function):
    """The entry of each window at a given place."""

    @staticmethod
    def forward(h: Tensor, x: Tensor, place: Tensor, size: int) -> Tensor:
        return h.flatten(2).gather(2, place.flatten(2)).view(place.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, place, ctx.size = inputs
        ctx.save_for_backward(x, place)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return applied(_Unpool, dy, *ctx.saved_tensors, ctx.size), None, None, None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], h: Tensor, x: Tensor, place: Tensor, size: int) -> Any:
        n = info.batch_size
        wide = (folded(t, a, 1, n) for t, a in zip((h, x, place), at, strict=False))
        return unfolded(applied(_Pick, *wide, size), 1, n), 1


class _Positive(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        found: Tensor = applied(_Where, dy, *ctx.saved_tensors)
        return found

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], x: Tensor) -> Any:
        return unfolded(applied(_Positive, folded(x, at[0], 1, info.batch_size)), 1, info.batch_size), 1


class _Where(Function):
    @staticmethod
    def forward(dy: Tensor, y: Tensor) -> Tensor:
        # As torch's own, in one pass: what is not a number lets the gradient pass.
        found: Tensor = torch.ops.aten.threshold_backward(dy, y, 0)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, None]:
        return applied(_Where, h, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], dy: Tensor, y: Tensor) -> Any:
        n = info.batch_size
        return unfolded(applied(_Where, folded(dy, at[0], 1, n), folded(y, at[1], 1, n)), 1, n), 1
