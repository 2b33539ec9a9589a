"""MLP: fully connected layers; by default those of MAML for sinusoids (1-40-40-1 with a linear head)."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec


class MLPOptions(BackboneOptions):
    """Options of the multi-layer perceptron."""

    widths: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (40, 40), min_length=1, description="units of each layer"
    )
    activation: Literal["relu", "tanh"] = Field("relu", description="activation function after each layer")


class MLP(Backbone):
    """Fully connected layers with an activation after each, on the flattened input."""

    Config = MLPOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.1"

    def __init__(self, config: MLPOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, *x_shape]` to `[n, widths[-1]]`."""
        activation = nn.ReLU if self.config.activation == "relu" else nn.Tanh
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((prod(spec.x_shape), *self.config.widths)):
            layers += [nn.Linear(before, after), activation()]
        return nn.Sequential(*layers)
