"""Batch norm by the statistics of the batch at hand, with its derivatives written out.

Torch would differentiate each of its primitives, and pass over the whole batch two dozen times for what is a sum of two
or three tensors, weighted feature by feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import applied, folded, unfolded


def standardised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (`x` `[n, features, ...]` normalised, scaled and shifted; the mean and the variance that it had).

    Mean and variance `[features]` are constants for autograd.
    """
    found: tuple[Tensor, Tensor, Tensor] = applied(_Forward, x, weight, bias, eps)
    return found


# Let m be the mean over the batch and all positions, n the number of entries that it is taken of,
#     z = s (x - m(x)),  s = 1 / sqrt(m((x - m(x))^2) + eps),  y = w z + b.
# The gradient to x of <v, z> is
#     B(v) = s (v - m(v) - z m(v z)),
# which is its own adjoint; so for given dy: dx = w B(dy), dw = n m(dy z), db = n m(dy). And the gradient to x of
# <h, B(v)> is
#     - s s z (m(h v) - m(h) m(v) - m(h z) m(v z)) - s (m(v z) B(h) + m(h z) B(v)).


class _Forward(Function):
    """y, m(x) and the variance."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = _mean(x)
        var = _mean((x - _wide(mean, x)).square_())
        scale = (var + eps).rsqrt() * w
        return torch.addcmul(_wide(b - mean * scale, x), x, _wide(scale, x)), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, w, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, w, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = applied(_Back, dy, *ctx.saved_tensors, ctx.eps)
        return dx, dw, db, None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor, eps: float) -> Any:
        n = info.batch_size
        wide, vectors = folded(x, at[0], 1, n), (folded(t, a, 0, n) for t, a in zip((w, b), at[1:3], strict=True))
        y, mean, var = applied(_Forward, wide, *vectors, eps)
        return (unfolded(y, 1, n), unfolded(mean, 0, n), unfolded(var, 0, n)), (1, 0, 0)


class _Back(Function):
    """dx, dw and db of dy."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, m_dy, centred = (var + eps).rsqrt(), _mean(dy), x - _wide(mean, x)
        m_dyz = s * _mean(dy * centred)
        scale, n = s * w, x.numel() // x.shape[1]
        dx = torch.addcmul(_wide(-scale * m_dy, x), dy, _wide(scale, x))
        dx.addcmul_(centred, _wide(-scale * s * m_dyz, x))
        return dx, m_dyz * n, m_dy * n

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *saved, ctx.eps = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, h: Tensor, h_w: Tensor, h_b: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For derivatives of a third order: the statistics depend on x.
            mean = _mean(x)
            var = _mean((x - _wide(mean, x)).square())
        s, n = (var + ctx.eps).rsqrt(), x.numel() // x.shape[1]
        z = (x - _wide(mean, x)) * _wide(s, x)
        m_h, m_hz, m_v, m_vz = _mean(h), _mean(h * z), _mean(dy), _mean(dy * z)
        rest = _mean(h * dy) - m_h * m_v - m_hz * m_vz
        # w B(h) + h_w z + h_b, and w times the gradient to x of <h, B(v)>, plus h_w B(v): sums of h, v and z.
        ws = w * s
        to_dy = _sum(_wide(h_b - ws * m_h, x), (h, ws), (z, h_w - ws * m_hz))
        of_v, of_h = s * (h_w - ws * m_hz), -ws * s * m_vz
        of_z = -(ws * s * rest + of_v * m_vz + of_h * m_hz)
        to_x = _sum(_wide(-of_v * m_v - of_h * m_h, x), (dy, of_v), (h, of_h), (z, of_z))
        return to_dy, to_x, s * rest * n, None, None, None

    @staticmethod
    def vmap(info: Any, at: tuple[Any, ...], *given: Any) -> Any:
        *tensors, eps = given
        n = info.batch_size
        wide = [folded(t, a, 1, n) for t, a in zip(tensors[:2], at, strict=False)]
        vectors = [folded(t, a, 0, n) for t, a in zip(tensors[2:], at[2:], strict=False)]
        dx, dw, db = applied(_Back, *wide, *vectors, eps)
        return (unfolded(dx, 1, n), unfolded(dw, 0, n), unfolded(db, 0, n)), (1, 0, 0)


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each feature `[features]`."""
    return x.mean((0, *range(2, x.dim())))


def _sum(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return a constant and tensors that are weighted feature by feature, added up in one pass over each."""
    for tensor, weight in terms:
        constant = torch.addcmul(constant, tensor, _wide(weight, tensor))
    return constant


def _wide(vector: Tensor, x: Tensor) -> Tensor:
    """Return `[features]` shaped to multiply `x`."""
    return vector.reshape(1, -1, *(1,) * (x.dim() - 2))
