"""Transformer: an encoder of sequences by self-attention, in blocks that normalise their input (pre-norm).

Vaswani et al., "Attention is all you need", NeurIPS 2017.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec, input_sizes


class TransformerOptions(BackboneOptions):
    """Options of the encoder."""

    width: int = Field(64, ge=1, le=8192, description="features of each position between the blocks")
    heads: int = Field(4, ge=1, le=256, description="heads of attention, which must divide the width")
    layers: int = Field(2, ge=1, le=64, description="number of blocks")
    expansion: int = Field(4, ge=1, le=64, description="units of the layer within a block, as a multiple of the width")
    activation: Literal["relu", "gelu"] = Field("relu", description="activation function of that layer")
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="what is added to a position so that its place is known"
    )
    pooling: Literal["mean", "last"] = Field("mean", description="features: the mean over positions, or the last one")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="rate of dropout of the embedding, the attention, and what a block adds"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


class Attention(nn.Module):
    """Multi-head self-attention over all positions, equation 1 of the paper.

    It is written out, because torch's fused kernels have no second derivatives.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project, self.out, self.dropout = linear(width, 3 * width), linear(width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, length, width]` for `x` of the same shape."""
        parts = self.project(x).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        query, key, value = parts.unbind()
        weights = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).softmax(-1)
        out: Tensor = self.out((self.dropout(weights) @ value).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Self-attention and two linear layers, each on its normalised input and added to it."""

    def __init__(self, config: TransformerOptions) -> None:
        super().__init__()
        width, rate = config.width, config.dropout
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, config.heads, rate)
        self.norm2, self.first = nn.LayerNorm(width), linear(width, config.expansion * width)
        self.act = nn.ReLU() if config.activation == "relu" else nn.GELU()
        self.second = linear(config.expansion * width, width)
        self.drop1, self.drop2, self.drop3 = nn.Dropout(rate), nn.Dropout(rate), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, length, width]` for `x` of the same shape."""
        x = x + self.drop1(self.attention(self.norm1(x)))
        update: Tensor = self.drop3(self.second(self.drop2(self.act(self.first(self.norm2(x))))))
        return x + update


class Network(nn.Module):
    """The embedding of the inputs, the blocks, a last norm, and the pooling."""

    def __init__(self, length: int, features: int, config: TransformerOptions) -> None:
        super().__init__()
        self.embed, self.dropout = linear(features, config.width), nn.Dropout(config.dropout)
        self.positions: Tensor | None
        if config.positions == "learned":
            self.positions = nn.Parameter(nn.init.normal_(torch.empty(length, config.width), std=0.02))
        else:
            table = sinusoids(length, config.width) if config.positions == "sinusoidal" else None
            self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm, self.pooling = nn.LayerNorm(config.width), config.pooling

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `[n, width]` for `x` `[n, length, features]`."""
        x = self.embed(x)
        x = self.norm(self.blocks(self.dropout(x if self.positions is None else x + self.positions)))
        return x.mean(1) if self.pooling == "mean" else x[:, -1]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with weights after Glorot and Bengio, and biases of zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(length: int, width: int) -> Tensor:
    """Return the sines and cosines of the places `[length, width]`, section 3.5 of the paper."""
    pairs = (width + 1) // 2
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-2 * torch.arange(pairs) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class Transformer(Backbone):
    """Encodes sequences `[length, features]` by self-attention; by default 64 features.

    A linear layer embeds the inputs. Initially the weights are uniform after Glorot and Bengio (Xavier) and the biases
    zero; learned positions are normal with standard deviation 0.02.

    Departures from the paper:
    - Encoder alone. Its output is pooled to one vector, by the mean over positions or the last one.
    - Norm. The paper normalises what a block returns; here each block normalises its input, and a last norm follows the
      blocks, as is usual since (Xiong et al. 2020), because training needs no warm-up then. No option changes that.
    - Embedding. The inputs are vectors, so a linear layer takes the place of the table of tokens, without its factor
      √width. No option changes that.
    - Dropout. The paper has a rate of 0.1; here there is none by default. `backbone.dropout=0.1` gives theirs.
    """

    Config = TransformerOptions
    reference: ClassVar[str] = "Vaswani et al. 2017, arXiv 1706.03762, section 3; Xiong et al. 2020, arXiv 2002.04745"

    def __init__(self, config: TransformerOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, length, features]` to `[n, width]`; raise `ConfigError` for other inputs."""
        length, features = input_sizes(spec, "length", "features")
        return Network(length, features, self.config)
