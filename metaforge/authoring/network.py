"""Build networks: from a key, with a linear head, and knowing how many features they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metaforge.authoring.protocols import Key


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed torch's default CPU generator with `key` inside the context, and restore its state afterwards.

    Modules draw their initial weights from this generator, so inside they depend on the key alone.

    Args:
        key: An int64 scalar tensor.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import make_key, seeded
        >>> with seeded(make_key(0)):
        ...     first = nn.Linear(2, 1)
        >>> with seeded(make_key(0)):
        ...     second = nn.Linear(2, 1)
        >>> bool((first.weight == second.weight).all())
        True
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(key))
    try:
        yield
    finally:
        generator.set_state(before)


def with_head(backbone: Callable[[], nn.Module], outputs: int, x_shape: Sequence[int]) -> Callable[[], nn.Module]:
    """Return a function that builds a backbone followed by `nn.Flatten` and a linear head.

    Args:
        backbone: Builds a new backbone at each call.
        outputs: Number of outputs of the head.
        x_shape: Shape of one input, without the batch dimension.

    Returns:
        A function that builds a module from `[n, *x_shape]` to `[n, outputs]`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import with_head
        >>> build = with_head(lambda: nn.Conv2d(1, 4, 3), outputs=5, x_shape=(1, 8, 8))
        >>> build()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 5])
    """

    def build() -> nn.Module:
        body = backbone()
        return nn.Sequential(body, nn.Flatten(), nn.Linear(feature_size(body, x_shape), outputs))

    return build


def feature_size(module: nn.Module, x_shape: Sequence[int]) -> int:
    """Return the number of features that a module computes for one input, flattened.

    It runs a copy of the module in evaluation mode on two inputs of zeros, so the module itself does not change.

    Args:
        module: A module from `[n, *x_shape]` to `[n, ...]`.
        x_shape: Shape of one input, without the batch dimension.

    Returns:
        The number of features of one input.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import feature_size
        >>> feature_size(nn.Conv2d(1, 4, 3), (1, 8, 8))
        144
    """
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        size: int = module(zero_inputs(module, x_shape)).flatten(1).shape[1]
    return size


def zero_inputs(module: nn.Module, x_shape: Sequence[int]) -> Tensor:
    """Return two inputs of zeros, with the type and device of the module's parameters."""
    return next(module.parameters(), torch.empty(0)).new_zeros((2, *x_shape))
