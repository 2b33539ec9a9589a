"""Linear layers with ReLU between them, whose weights are values of a learner."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import fold_in, uniform
from metaforge.authoring.protocols import Key, Params


class MLP(NamedTuple):
    """Linear layers with ReLU between them: a function of its weights, with any number of leading axes.

    Attributes:
        name: The prefix of its weights among the learner's values.
        widths: Number of inputs, and of outputs of each layer.
        bias: Whether the layers have biases.

    Example:
        >>> import torch
        >>> from metaforge.authoring import MLP, make_key
        >>> mlp = MLP("decoder", (3, 8, 2))
        >>> values = mlp.init(make_key(0))
        >>> sorted(values)
        ['decoder.0.bias', 'decoder.0.weight', 'decoder.1.bias', 'decoder.1.weight']
        >>> mlp(values, torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    name: str
    widths: tuple[int, ...]
    bias: bool = True

    def init(self, key: Key) -> Params:
        """Return `<name>.<i>.weight` `[outputs, inputs]` and `<name>.<i>.bias`, uniform in ±1/√inputs."""
        values: Params = {}
        for i, (inputs, outputs) in enumerate(pairwise(self.widths)):
            shapes = {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if self.bias else {})
            for part, shape in shapes.items():
                name = f"{self.name}.{i}.{part}"
                values[name] = (2 * uniform(fold_in(key, name), shape) - 1) / inputs**0.5
        return values

    def __call__(self, values: Params, x: Tensor) -> Tensor:
        """Return the outputs `[..., widths[-1]]` for inputs `[..., widths[0]]`."""
        last = len(self.widths) - 2
        for i in range(last + 1):
            x = F.linear(x, values[f"{self.name}.{i}.weight"], values.get(f"{self.name}.{i}.bias"))
            x = x.relu() if i < last else x
        return x
