"""LSTM: an encoder of sequences by long short-term memory, in layers and in one or both directions.

Hochreiter, Schmidhuber, "Long short-term memory", Neural Computation 1997.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, LSTMCell, Params, TaskSpec, input_sizes


class LSTMOptions(BackboneOptions):
    """Options of the encoder."""

    hidden: int = Field(64, ge=1, le=8192, description="features of the hidden state of each layer and direction")
    layers: int = Field(1, ge=1, le=16, description="number of layers, each of which reads the states of the one below")
    bidirectional: bool = Field(False, description="whether each layer also reads the sequence from its end")
    pooling: Literal["last", "mean"] = Field(
        "last", description="features: the hidden state after the whole sequence, or the mean over its inputs"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout between layers")
    forget: float = Field(0.0, ge=-10, le=10, description="what is added to the input of the forget gate")


class Direction(nn.Module):
    """One layer that reads a sequence in one direction.

    `nn.LSTM` cannot be vectorised over tasks; `LSTMCell` of MetaForge computes the same, and can.
    """

    def __init__(self, inputs: int, hidden: int, *, forget: float, reverse: bool) -> None:
        super().__init__()
        self.cell, self.reverse = LSTMCell("cell", inputs, hidden, forget=forget), reverse
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(4 * hidden))
        for value in self.parameters():
            nn.init.uniform_(value, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden state `[length, n, hidden]` after each input of `x` `[length, n, inputs]`, at its place."""
        values: Params = {"cell.weight_ih": self.weight_ih, "cell.weight_hh": self.weight_hh, "cell.bias": self.bias}
        return self.cell.run(values, x, reverse=self.reverse)


class Network(nn.Module):
    """Layers of one or two directions, and the pooling."""

    def __init__(self, features: int, config: LSTMOptions) -> None:
        super().__init__()
        both = (False, True) if config.bidirectional else (False,)
        sizes = [features, *[config.hidden * len(both)] * (config.layers - 1)]
        self.layers = nn.ModuleList(
            nn.ModuleList(Direction(size, config.hidden, forget=config.forget, reverse=reverse) for reverse in both)
            for size in sizes
        )
        self.dropout, self.pooling = nn.Dropout(config.dropout), config.pooling

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `[n, hidden * directions]` for `x` `[n, length, features]`."""
        x = x.transpose(0, 1)
        states: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            x = self.dropout(torch.cat(states, -1)) if number else x
            states = [direction(x) for direction in layer]  # type: ignore[attr-defined]
        if self.pooling == "mean":
            return torch.cat(states, -1).mean(0)
        # The state after the whole sequence: that of the second direction is at the first input.
        return torch.cat([state[0] if number else state[-1] for number, state in enumerate(states)], -1)


class LSTM(Backbone):
    """Encodes sequences `[length, features]` by their hidden state after the last input; by default 64 features.

    It computes what `nn.LSTM` does. Weights and biases are uniform in ±1/√hidden at first.

    Departures from the paper:
    - Forget gate. The cell of the paper has none; that of Gers, Schmidhuber and Cummins (2000), which is the usual one,
      has. `backbone.forget` starts it more or less open; no option leaves it out.
    - One bias. `nn.LSTM` adds two biases in each gate; here there is one, so that initial biases are smaller. No option
      changes that.
    """

    Config = LSTMOptions
    reference: ClassVar[str] = "Hochreiter, Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735"

    def __init__(self, config: LSTMOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, length, features]` to a vector each; raise `ConfigError` for other inputs."""
        return Network(input_sizes(spec, "length", "features")[1], self.config)
