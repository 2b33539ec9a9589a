"""Layers on images whose tasks are computed side by side, channels innermost in memory, where a step is compiled.

At once, not compiled, the cost of these functions' Python is more than what they save: there the layers are torch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from metaforge.convolution import Geometry, convolution
from metaforge.pooling import max_pool, positive

_together: ContextVar[bool] = ContextVar("together", default=False)


@contextmanager
def together() -> Iterator[None]:
    """Use the functions of this module inside, and torch's own outside."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


class Conv2d(nn.Conv2d):
    """Torch's layer, padded by zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, out, h', w']` of `[n, in, h, w]`."""
        if not _together.get() or x.dim() != 4:
            return super().forward(x)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return convolution(x, self.weight, self.bias, geometry)


class MaxPool2d(nn.MaxPool2d):
    """Torch's layer, its windows side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, c, h // size, w // size]` of `[n, c, h, w]`."""
        if not _together.get() or x.dim() != 4:
            own: Tensor = super().forward(x)
            return own
        return max_pool(x, int(self.kernel_size))  # type: ignore[arg-type]


class ReLU(nn.ReLU):
    """Torch's layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part of `x`."""
        if not _together.get() or x.dim() != 4:
            return nn.functional.relu(x)
        return positive(x)


def replacement(module: nn.Module) -> nn.Module | None:
    """Return a layer with the same parameters in place of torch's own, or None where this kind is left to torch."""
    kind: type[nn.Module] | None = None
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kind = Conv2d
    elif type(module) is nn.MaxPool2d and _side_by_side(module):
        kind = MaxPool2d
    elif type(module) is nn.ReLU:
        kind = ReLU
    if kind is None:
        return None
    layer = kind.__new__(kind)
    layer.__dict__ = module.__dict__
    return layer


def _side_by_side(module: nn.MaxPool2d) -> bool:
    plain = module.padding == 0 and module.dilation == 1 and not module.ceil_mode and not module.return_indices
    return plain and isinstance(module.kernel_size, int) and module.stride == module.kernel_size
