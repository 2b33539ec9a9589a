"""Layers on images whose tasks are computed side by side, channels innermost in memory.

A compiled step gains from them everywhere. At once they cost more Python than torch's, which pays in networks that
pool: torch's pooling is several times slower where channels are not innermost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metaforge.kernels.convolution import Geometry, convolution
from metaforge.kernels.pooling import max_pool, relu

_Where = Literal["nowhere", "pooled", "everywhere"]
_together: ContextVar[_Where] = ContextVar("together", default="nowhere")


@contextmanager
def together(where: _Where = "everywhere") -> Iterator[None]:
    """Use the functions of this module inside, in all networks or in those that pool; outside, torch's own."""
    token = _together.set(where)
    try:
        with _Reshaping():
            yield
    finally:
        _together.reset(token)


class _Reshaping(TorchFunctionMode):
    """Lets `x.view(shape)` of a network take images whose channels are innermost in memory, as `reshape` does."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.view and not named and not isinstance(arguments[1], torch.dtype):
            function = Tensor.reshape
        return function(*arguments, **(named or {}))


class Conv2d(nn.Conv2d):
    """Torch's layer, padded by zeros; `pooled` if its network pools."""

    pooled: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, out, h', w']` of `[n, in, h, w]`."""
        where = _together.get()
        if x.dim() != 4 or where == "nowhere" or (where == "pooled" and not self.pooled):
            return super().forward(x)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return convolution(x, self.weight, self.bias, geometry)


class MaxPool2d(nn.MaxPool2d):
    """Torch's layer, its windows side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, c, h // size, w // size]` of `[n, c, h, w]`."""
        if x.dim() != 4 or _together.get() == "nowhere":
            own: Tensor = super().forward(x)
            return own
        return max_pool(x, int(self.kernel_size))  # type: ignore[arg-type]


class ReLU(nn.ReLU):
    """Torch's layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part of `x`."""
        if x.dim() != 4 or _together.get() != "everywhere":
            return nn.functional.relu(x)
        return relu(x)
