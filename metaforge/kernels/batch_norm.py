"""Batch norm with the statistics of the current batch, and with hand-written first and second derivatives.

PyTorch's fused `batch_norm` gives wrong second derivatives under `grad(vmap)`. Batch norm composed of primitive
operations is correct, but autograd then differentiates each of them, with two dozen passes over the batch. In fact each
derivative is a sum of two or three tensors with one weight per feature, and that is how it is computed here. For third
and higher derivatives, autograd differentiates the formula of the second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metaforge.kernels.task_axis import apply_function, merge_tasks, split_tasks


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return `x` normalised over the batch and all positions, scaled and shifted; and its mean and variance.

    The mean and the biased variance (without the correction n / (n - 1)), each `[features]`, have no gradient.

    Args:
        x: The input `[n, features, ...]`.
        weight: The scale `[features]`.
        bias: The shift `[features]`.
        eps: The number added to the variance.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = apply_function(_BatchNorm, x, weight, bias, eps)
    return outputs


# Let m be the mean over the batch and all positions, n the number of elements that it averages,
#     z = s (x - m(x)),  s = 1 / sqrt(m((x - m(x))^2) + eps),  y = w z + b.
# The gradient of <v, z> with respect to x is
#     B(v) = s (v - m(v) - z m(v z)).
# B is self-adjoint. So for a given dy: dx = w B(dy), dw = n m(dy z), db = n m(dy). And the gradient of <h, B(v)> with
# respect to x is
#     - s s z (m(h v) - m(h) m(v) - m(h z) m(v z)) - s (m(v z) B(h) + m(h z) B(v)).
# In the code: x input, w weight, b bias, y output; dx, dw, db and dy are the gradients of the loss with respect to
# them; h, h_w and h_b are the gradients with respect to dx, dw and db in the second backward pass.


class _BatchNorm(Function):
    """Computes y, the mean and the variance."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = _mean(x)
        var = _mean((x - _per_feature(mean, x)).square_())
        scale = (var + eps).rsqrt() * w
        return torch.addcmul(_per_feature(b - mean * scale, x), x, _per_feature(scale, x)), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, w, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, w, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = apply_function(_BatchNormBackward, dy, *ctx.saved_tensors, ctx.eps)
        return dx, dw, db, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor, eps: float) -> Any:
        # The tasks become further features, each with its own statistics.
        n = info.batch_size
        images = merge_tasks(x, in_dims[0], 1, n)
        vectors = (merge_tasks(t, d, 0, n) for t, d in zip((w, b), in_dims[1:3], strict=True))
        y, mean, var = apply_function(_BatchNorm, images, *vectors, eps)
        return (split_tasks(y, 1, n), split_tasks(mean, 0, n), split_tasks(var, 0, n)), (1, 0, 0)


class _BatchNormBackward(Function):
    """Computes dx, dw and db from dy."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = (var + eps).rsqrt()
        if _suits_native_backward(dy, x, w):
            gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
                dy, x, w, None, None, mean, s, True, eps, [True, True, True]
            )
            return gradients
        m_dy, centred = _mean(dy), x - _per_feature(mean, x)
        m_dyz = s * _mean(dy * centred)
        scale, n = s * w, x.numel() // x.shape[1]
        dx = torch.addcmul(_per_feature(-scale * m_dy, x), dy, _per_feature(scale, x))
        dx.addcmul_(centred, _per_feature(-scale * s * m_dyz, x))
        return dx, m_dyz * n, m_dy * n

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *saved, ctx.eps = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, h: Tensor, h_w: Tensor, h_b: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For third derivatives: the saved statistics have no gradient, so they are computed again from x.
            mean = _mean(x)
            var = _mean((x - _per_feature(mean, x)).square())
        s, n = (var + ctx.eps).rsqrt(), x.numel() // x.shape[1]
        z = (x - _per_feature(mean, x)) * _per_feature(s, x)
        m_h, m_hz, m_v, m_vz = _mean(h), _mean(h * z), _mean(dy), _mean(dy * z)
        rest = _mean(h * dy) - m_h * m_v - m_hz * m_vz
        # With v = dy: the gradient with respect to dy is w B(h) + h_w z + h_b. The one with respect to x is w times
        # that of <h, B(v)>, plus h_w B(v). Both are weighted sums of h, v and z.
        ws = w * s
        to_dy = _weighted_sum(_per_feature(h_b - ws * m_h, x), (h, ws), (z, h_w - ws * m_hz))
        of_v, of_h = s * (h_w - ws * m_hz), -ws * s * m_vz
        of_z = -(ws * s * rest + of_v * m_vz + of_h * m_hz)
        to_x = _weighted_sum(_per_feature(-of_v * m_v - of_h * m_h, x), (dy, of_v), (h, of_h), (z, of_z))
        return to_dy, to_x, s * rest * n, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, eps = inputs
        n = info.batch_size
        images = [merge_tasks(t, d, 1, n) for t, d in zip(tensors[:2], in_dims, strict=False)]
        vectors = [merge_tasks(t, d, 0, n) for t, d in zip(tensors[2:], in_dims[2:], strict=False)]
        dx, dw, db = apply_function(_BatchNormBackward, *images, *vectors, eps)
        return (split_tasks(dx, 1, n), split_tasks(dw, 0, n), split_tasks(db, 0, n)), (1, 0, 0)


def _suits_native_backward(dy: Tensor, x: Tensor, w: Tensor) -> bool:
    """Return whether PyTorch's own backward pass is used for the first derivative.

    It takes a quarter of the time on large inputs. In channels-last format its sums in float32 are less accurate, and
    a compiler fuses the formula with the operations around it.
    """
    plain = dy.is_contiguous() and x.is_contiguous() and x.dtype == w.dtype
    return plain and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each feature `[features]`."""
    return x.mean((0, *range(2, x.dim())))


def _weighted_sum(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return a constant plus tensors weighted per feature, in one pass over each tensor."""
    for tensor, weight in terms:
        constant = torch.addcmul(constant, tensor, _per_feature(weight, tensor))
    return constant


def _per_feature(vector: Tensor, x: Tensor) -> Tensor:
    """Return `[features]` reshaped to broadcast over `x` `[n, features, ...]`."""
    return vector.reshape(1, -1, *(1,) * (x.dim() - 2))
