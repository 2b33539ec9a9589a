"""Linear layers with ReLU between them, whose weights are values of a learner."""

from __future__ import annotations

from itertools import pairwise
from math import prod
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
            values |= initial_linear(f"{self.name}.{i}", (outputs, inputs), key, bias=self.bias)
        return values

    def __call__(self, values: Params, x: Tensor) -> Tensor:
        """Return the outputs `[..., widths[-1]]` for inputs `[..., widths[0]]`."""
        last = len(self.widths) - 2
        for i in range(last + 1):
            x = F.linear(x, values[f"{self.name}.{i}.weight"], values.get(f"{self.name}.{i}.bias"))
            x = x.relu() if i < last else x
        return x


def initial_linear(name: str, shape: tuple[int, ...], key: Key, *, bias: bool = True) -> Params:
    """Return the weight and the bias of a linear or convolutional layer, uniform in ±1/√inputs as PyTorch draws them.

    Args:
        name: The prefix of their names.
        shape: Shape of the weight: outputs first; the product of the others is the number of inputs of an output.
        key: The key of the random numbers; each name has numbers of its own.
        bias: Whether there is a bias.

    Returns:
        `<name>.weight` of this shape, and `<name>.bias` `[outputs]`.

    Example:
        >>> from metaforge.authoring import initial_linear, make_key
        >>> {name: tuple(value.shape) for name, value in initial_linear("head", (2, 8), make_key(0)).items()}
        {'head.weight': (2, 8), 'head.bias': (2,)}
    """
    shapes = {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
    scale = prod(shape[1:]) ** 0.5
    return {place: (2 * uniform(fold_in(key, place), size) - 1) / scale for place, size in shapes.items()}
