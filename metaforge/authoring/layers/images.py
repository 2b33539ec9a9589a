"""Convolution, max pooling and ReLU that the engine can switch to channels-last kernels for all tasks in one call.

Outside of the context `channels_last_kernels` each layer computes what torch's does. Inside, it calls a kernel of
`metaforge.kernels`, which under `vmap` merges the task dimension into the channels and computes in channels-last memory
format. Compiled steps of every network are faster with these kernels. In eager mode the kernels have more Python
overhead than torch's, which pays off only in networks with max pooling: torch's max pooling is several times slower on
images in the contiguous format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metaforge.kernels.convolution import Geometry, convolution
from metaforge.kernels.pooling import max_pool, relu

_Where = Literal["nowhere", "pooled", "everywhere"]
_kernels_used: ContextVar[_Where] = ContextVar("kernels_used", default="nowhere")


@contextmanager
def channels_last_kernels(where: _Where = "everywhere") -> Iterator[None]:
    """Let the layers of this module use the channels-last kernels while the context is active.

    Args:
        where: `everywhere`: all layers. `pooled`: convolution and max pooling, in networks with max pooling. `nowhere`:
            no layer.
    """
    token = _kernels_used.set(where)
    try:
        with _ViewAsReshape() if where == "everywhere" else nullcontext():
            yield
    finally:
        _kernels_used.reset(token)


@contextmanager
def pooled_network() -> Iterator[None]:
    """Prepare the forward pass of a network with max pooling, whose images may be in channels-last format.

    A function mode takes time at each call of torch, so networks without max pooling run without it.
    """
    with _ViewAsReshape() if _kernels_used.get() == "pooled" else nullcontext():
        yield


class _ViewAsReshape(TorchFunctionMode):
    """Runs `x.view(shape)` as `x.reshape(shape)`, because `view` cannot flatten images in channels-last format."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.view and not kwargs and not isinstance(args[1], torch.dtype):
            function = Tensor.reshape
        return function(*args, **(kwargs or {}))


class Conv2d(nn.Conv2d):
    """Convolution with zero padding.

    Attributes:
        pooled: Whether the network that contains the layer has max pooling.
    """

    pooled: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, out, h', w']` for `x` `[n, in, h, w]`."""
        where = _kernels_used.get()
        if x.dim() != 4 or where == "nowhere" or (where == "pooled" and not self.pooled):
            return super().forward(x)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return convolution(x, self.weight, self.bias, geometry)


class MaxPool2d(nn.MaxPool2d):
    """Max pooling over square windows that do not overlap."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, c, h // size, w // size]` for `x` `[n, c, h, w]`."""
        if x.dim() != 4 or _kernels_used.get() == "nowhere":
            native: Tensor = super().forward(x)
            return native
        return max_pool(x, int(self.kernel_size))  # type: ignore[arg-type]


class ReLU(nn.ReLU):
    """The rectified linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part of `x`."""
        if x.dim() != 4 or _kernels_used.get() != "everywhere":
            return nn.functional.relu(x)
        return relu(x)
