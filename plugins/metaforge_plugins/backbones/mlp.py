"""MLP: fully connected layers; by default those of MAML for sinusoids (1-40-40-1 with a linear head)."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec


class MLPOptions(BackboneOptions):
    """Options of the multi-layer perceptron."""

    widths: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (40, 40), description="units of each layer; none for the flattened input itself"
    )
    activation: Literal["relu", "tanh"] = Field("relu", description="activation function after each layer")


class MLP(Backbone):
    """Fully connected layers with an activation after each, on the flattened input.

    Departures from the paper:
    - Initial values. The authors of MAML draw all weights from a normal distribution with standard deviation 0.01,
      truncated, and set the biases to zero. Here they are those of `nn.Linear`, uniform in ±1/√inputs. No option
      changes that.
    - Omniglot without convolutions. The authors of MAML use layers of 256, 128, 64 and 64 units, with batch norm before
      each activation. `backbone.widths=[256, 128, 64, 64]` gives the sizes; this network has no batch norm.
    """

    Config = MLPOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.1"

    def __init__(self, config: MLPOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        """Return a module from `[n, *x_shape]`, and a context `[context]` if there is one, to `[n, widths[-1]]`.

        The context is concatenated to the flattened input, which without `widths` is the output.
        """
        activation = nn.ReLU if self.config.activation == "relu" else nn.Tanh
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((prod(spec.x_shape) + context, *self.config.widths)):
            layers += [nn.Linear(before, after), activation()]
        return Concatenated(*layers) if context else nn.Sequential(*layers)


class Concatenated(nn.Sequential):
    """Layers on the flattened input with a context concatenated to it (CAVIA, Zintgraf et al. 2019, section 3.1)."""

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the output of the layers for `x` `[n, ...]` and one context `[context]` for all inputs."""
        x = torch.cat([x.flatten(1), *(vector.expand(len(x), -1) for vector in context)], 1)
        for layer in self:
            x = layer(x)
        return x
