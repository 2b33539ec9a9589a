"""Smooth stand-ins for functions with kinks, so that differences of a plugin's own network make sense.

The derivative of an adapted loss has the network's first derivative in it, which jumps at the kinks of ReLU and max
pooling: finite differences across a jump say nothing. Under `Smooth` any network is checked as it stands, with these
functions exchanged; what is checked is how the learner differentiates, not which function it differentiates.
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


def _leaky(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return negative_slope * x + (1 - negative_slope) * F.silu(x)


def _pool(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pool(x: Tensor, size: Any, stride: Any = None, padding: Any = 0, *rest: Any, **named: Any) -> Tensor:
        return average(x, size, stride or size, padding, ceil_mode=bool(named.get("ceil_mode", False)))

    return pool


_STAND_INS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "relu": _relu,
        "relu6": _relu,
        "leaky_relu": _leaky,
        "max_pool1d": _pool(F.avg_pool1d),
        "max_pool2d": _pool(F.avg_pool2d),
        "max_pool3d": _pool(F.avg_pool3d),
        "adaptive_max_pool1d": F.adaptive_avg_pool1d,
        "adaptive_max_pool2d": F.adaptive_avg_pool2d,
        "adaptive_max_pool3d": F.adaptive_avg_pool3d,
    }
)


class Smooth(TorchFunctionMode):
    """While it is entered, ReLU is SiLU and max pooling is average pooling, under transforms too."""

    def __torch_function__(
        self, function: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the stand-in of a function that has one, and any other as it is."""
        stand_in = _STAND_INS.get(getattr(function, "__name__", ""), function)
        return stand_in(*args, **(kwargs or {}))
