"""Dropout whose noise comes from the key of the forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from metaforge.authoring.keys import fold_in, uniform
from metaforge.authoring.layers.norms import ForwardContext


class Dropout(nn.Module):
    """Dropout by the pass's key: one draw per inner step in training, the identity in evaluation."""

    def __init__(self, rate: float, name: str, frame: ForwardContext, *, channels: bool = False) -> None:
        super().__init__()
        self.rate, self.name, self.frame, self.channels = rate, name, frame, channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share `rate` of its entries zeroed and the rest scaled to keep the mean."""
        at = self.frame.at
        if at.key is None or self.rate == 0.0:
            return x
        key = fold_in(fold_in(fold_in(at.key, self.name), at.role), at.step)
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if self.channels else x.shape
        return x * (uniform(key, shape, x.dtype) >= self.rate) / (1.0 - self.rate)
