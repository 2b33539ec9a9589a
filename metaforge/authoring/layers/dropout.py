"""Dropout whose masks are derived from the key of the forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from metaforge.authoring.keys import fold_in
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.noise import dropout_factor


class Dropout(nn.Module):
    """Dropout with a mask derived from the key of the pass, the layer's name, the role and the inner step.

    A pass without a key is an evaluation: the layer then returns its input.

    Args:
        rate: Probability that an entry is zeroed.
        name: The layer's name in its network.
        context: The context of the network's forward pass.
        channels: Whether whole channels of each example are zeroed, instead of single entries.
    """

    def __init__(self, rate: float, name: str, context: ForwardContext, *, channels: bool = False) -> None:
        super().__init__()
        self.rate, self.name, self.context, self.channels = rate, name, context, channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, ...]` with entries or channels zeroed at random and the others scaled by `1 / (1 - rate)`."""
        at = self.context.at
        if at.key is None or self.rate == 0.0:
            return x
        key = fold_in(fold_in(fold_in(at.key, self.name), at.role), at.step)
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if self.channels else x.shape
        return x * dropout_factor(key, shape, self.rate, x.dtype)
