"""Replaces functions with kinks by smooth ones, so that a network can be compared with finite differences.

The meta-gradient contains derivatives of the network's gradient, and this gradient jumps at the kinks of ReLU and max
pooling. Finite differences across a jump are meaningless. With the replacements the check still covers how the learner
differentiates its own network; only the activation and pooling functions are others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return F.silu(x)


def _leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return negative_slope * x + (1 - negative_slope) * F.silu(x)


def _pool(average_pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a replacement for max pooling that takes its arguments and calls `average_pool`."""

    def pool(x: Tensor, size: Any, stride: Any = None, padding: Any = 0, *rest: Any, **named: Any) -> Tensor:
        return average_pool(x, size, stride or size, padding, ceil_mode=bool(named.get("ceil_mode", False)))

    return pool


_REPLACEMENTS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "relu": _relu,
        "relu6": _relu,
        "leaky_relu": _leaky_relu,
        "max_pool1d": _pool(F.avg_pool1d),
        "max_pool2d": _pool(F.avg_pool2d),
        "max_pool3d": _pool(F.avg_pool3d),
        "adaptive_max_pool1d": F.adaptive_avg_pool1d,
        "adaptive_max_pool2d": F.adaptive_avg_pool2d,
        "adaptive_max_pool3d": F.adaptive_avg_pool3d,
    }
)


class SmoothMode(TorchFunctionMode):
    """A context manager in which ReLU computes SiLU and max pooling computes average pooling, under transforms too."""

    def __torch_function__(
        self, function: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the replacement of a function if it has one, and the function itself otherwise."""
        replacement = _REPLACEMENTS.get(getattr(function, "__name__", ""), function)
        return replacement(*args, **(kwargs or {}))
