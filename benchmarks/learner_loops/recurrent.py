"""Steps of an LSTM whose gates get more than its hidden state, for which torch has no module."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lstm_gates(inputs: Tensor, weight: Tensor, *recurrent: Tensor) -> Tensor:
    """Return the gates `[..., 4 * hidden]`, from what the input contributes and from recurrent inputs."""
    return inputs + F.linear(torch.cat(recurrent, -1), weight)


def lstm(gates: Tensor, c: Tensor, forget: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return hidden and cell state, from the gates in torch's order; `forget` is added to those that keep the cell."""
    admit, keep, content, emit = gates.chunk(4, -1)
    c = (keep + forget).sigmoid() * c + admit.sigmoid() * content.tanh()
    return emit.sigmoid() * c.tanh(), c
