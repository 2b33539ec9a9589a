"""The protocol of backbones."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.types import TaskSpec


class Backbone(Component, Protocol):
    """Builds the network that maps inputs to features.

    Args:
        config: The backbone's validated options, an instance of its `Config`.

    Example:
        >>> import math
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Backbone, Options, TaskShape, TaskSpec
        >>> class OneLayer(Backbone):
        ...     "One linear layer with batch norm and ReLU."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def build(self, spec):
        ...         linear = nn.Linear(math.prod(spec.x_shape), 8)
        ...         return nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(8), nn.ReLU())
        >>> spec = TaskSpec("classification", x_shape=(1, 4, 4), outputs=5, shape=TaskShape(5, 1, 15))
        >>> OneLayer(Options()).build(spec)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(self, config: Any) -> None: ...

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a new module with all its parameters.

        Any module with native torch layers will do. `Model` makes it a pure function and replaces its norm layers.
        Draw initial weights from torch's default generator: MetaForge seeds it before this call and restores it after.

        Args:
            spec: Specification of the tasks.

        Returns:
            A module that maps inputs `[n, *x_shape]` to features `[n, ...]`.
        """
        ...
