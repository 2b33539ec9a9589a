"""Identity: the inputs themselves are the features."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec


class Identity(Backbone):
    """Returns the flattened inputs, for data sets whose inputs are features already.

    Learners that train a network have nothing to train in it, but those with a head or further networks have those.
    """

    Config = BackboneOptions
    reference: ClassVar[str] = "torch.nn.Flatten"

    def __init__(self, config: BackboneOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, *x_shape]` to `[n, features]`."""
        return nn.Flatten()
