"""Conv-4: four blocks of 3×3 convolution, batch norm and ReLU, in the variants that few-shot papers use.

The default is the network of MAML for Omniglot: stride-2 convolutions, no pooling, and the mean over positions. The
other variants are the networks of Prototypical Networks, Reptile and Relation Networks, and those for 84-pixel images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec


class Variant(NamedTuple):
    """The properties in which the published networks differ."""

    filters: int
    downsample: Literal["stride", "pool", "pool-first-two"]
    readout: Literal["mean", "flatten", "map"]


VARIANTS = {
    "stride": Variant(64, "stride", "mean"),
    "stride-flat": Variant(64, "stride", "flatten"),
    "pool": Variant(64, "pool", "flatten"),
    "pool-32": Variant(32, "pool", "flatten"),
    "relation": Variant(64, "pool-first-two", "map"),
}


class Conv4Options(BackboneOptions):
    """Options of the four-block convolutional network."""

    variant: Literal["stride", "stride-flat", "pool", "pool-32", "relation"] = Field(
        "stride",
        description="stride: MAML on Omniglot (spatial mean, 64 features); stride-flat: Reptile, iMAML; pool:"
        " ProtoNets, 84-pixel networks with 64 filters; pool-32: 84-pixel networks with 32; relation: a 64-channel map",
    )
    filters: int | None = Field(None, ge=1, le=4096, description="filters per block, by default those of the variant")
    affine: Literal["both", "shift", "none"] = Field(
        "both", description="parameters of batch norm: both γ and β, the shift β alone, or none"
    )


class Block(nn.Module):
    """Convolution, batch norm, max pooling and ReLU.

    ReLU is monotonic, so it can follow the pooling with the same result, and then processes a quarter of the entries.
    """

    def __init__(self, before: int, filters: int, *, stride: int, pool: bool, padding: int, affine: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, filters, 3, stride=stride, padding=padding)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(filters, affine=affine != "none")
        if affine == "shift":
            self.norm.register_parameter("weight", None)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, filters, h', w']` for `x` `[n, before, h, w]`."""
        out: Tensor = self.act(self.pool(self.norm(self.conv(x))))
        return out


class FiLMBlock(Block):
    """A block whose channels are scaled by 1 + γ and shifted by β before ReLU, both linear in a context (FiLM).

    Perez et al. 2018, arXiv 1709.07871; in the third block, as in CAVIA (Zintgraf et al. 2019, arXiv 1810.03642,
    section 4.2). There the scale starts at the bias of its layer; here it starts at one.
    """

    def __init__(self, before: int, filters: int, context: int, **options: Any) -> None:
        super().__init__(before, filters, **options)
        self.film = nn.Linear(context, 2 * filters, bias=False)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return `[n, filters, h', w']` for `x` `[n, before, h, w]` and a context `[context]`."""
        scale, shift = self.film(*context).reshape(2, 1, -1, 1, 1)
        out: Tensor = self.act((1 + scale) * self.pool(self.norm(self.conv(x))) + shift)
        return out


class ContextNetwork(nn.Sequential):
    """Blocks of which one takes a context."""

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the features of `x` `[n, channels, h, w]` with a context `[context]`."""
        for module in self:
            x = module(x, *context) if isinstance(module, FiLMBlock) else module(x)
        return x


class SpatialMean(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean `[n, filters]` of `x` `[n, filters, h, w]`."""
        return x.mean((2, 3))


class Conv4(Backbone):
    """Four convolution blocks; by default 64 features of a 28-pixel image.

    Departures from the paper:
    - Padding of the variants `stride` and `stride-flat`. The authors of MAML and Reptile pad as TensorFlow's `SAME`
      does: where the height or width is even, by one pixel at the bottom or right only. Here it is one pixel on every
      side. The outputs have equal sizes, but for images of 28 pixels three of the four convolutions are at other
      positions. No option gives theirs.
    - Batch norm. The authors of MAML have the shift β but no scale γ; here there are both by default.
      `backbone.affine=shift` gives theirs.
    - Initial values. In all variants the weights of the convolutions are drawn uniformly after Glorot and Bengio
      (Xavier), as in MAML, and the biases are zero. The authors of Relation Networks draw them after He et al.; no
      option gives that.
    - Running averages. In the variant `relation` the authors' batch norm keeps those of the last batch only (momentum
      1); here it is that of torch, 0.1. It matters only where running averages are used.
    """

    Config = Conv4Options
    reference: ClassVar[str] = (
        "Vinyals et al. 2016, arXiv 1606.04080; Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.2"
    )

    def __init__(self, config: Conv4Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, features]`; in the variant `relation` to a map.

        With a context, the module takes a context `[context]` too, which modulates the third block, see `FiLMBlock`.
        """
        variant = VARIANTS[self.config.variant]
        filters = self.config.filters or variant.filters
        strided = variant.downsample == "stride"
        blocks: list[nn.Module] = []
        for i in range(4):
            first_two = variant.downsample == "pool-first-two" and i < 2
            kind: Callable[..., Block] = partial(FiLMBlock, context=context) if context and i == 2 else Block
            blocks.append(
                kind(
                    spec.x_shape[0] if i == 0 else filters,
                    filters,
                    stride=2 if strided else 1,
                    pool=first_two or variant.downsample == "pool",
                    padding=0 if first_two else 1,
                    affine=self.config.affine,
                )
            )
        readout = {"mean": SpatialMean(), "flatten": nn.Flatten(), "map": nn.Identity()}[variant.readout]
        return (ContextNetwork if context else nn.Sequential)(*blocks, readout)
