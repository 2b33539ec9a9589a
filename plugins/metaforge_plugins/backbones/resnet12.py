"""ResNet-12: the residual network of four blocks that few-shot papers use for images of 84 pixels.

Lee, Maji, Ravichandran, Soatto, "Meta-learning with differentiable convex optimization", CVPR 2019 (MetaOptNet).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec, input_sizes
from metaforge.errors import ConfigError

SLOPE = 0.1
# Four poolings by 2 leave one position.
SMALLEST = 16
Width = Annotated[int, Field(ge=1, le=4096)]


class ResNet12Options(BackboneOptions):
    """Options of the residual network of four blocks."""

    widths: tuple[Width, Width, Width, Width] = Field(
        (64, 160, 320, 640), description="filters of each block; other papers have 64, 128, 256, 512"
    )
    readout: Literal["mean", "flatten"] = Field(
        "mean", description="features of the last map: the mean over positions, or all entries"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="rate of dropout after the first two blocks, and of DropBlock after the last two"
    )


class DropBlock(nn.Module):
    """Sets square patches of each channel to zero, and scales the rest so that the mean of the mask is one.

    Ghiasi, Lin, Le 2018, arXiv 1810.12890. Patches are `side` pixels wide, or as wide as a smaller map.
    """

    def __init__(self, rate: float, side: int = 5) -> None:
        super().__init__()
        self.rate, self.side = rate, side

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, channels, h, w]`, in training mode with patches of zeros."""
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        side = min(self.side, height, width)
        corners = x[..., side - 1 :, side - 1 :]
        # The rate γ of a patch in each place, equation 1 of the paper.
        rate = self.rate / side**2 * (height * width) / (corners.shape[-2] * corners.shape[-1])
        # MetaForge draws `rand_like` from the key of the pass.
        patches = (torch.rand_like(corners) < rate).to(x.dtype)
        kept = 1 - functional.max_pool2d(functional.pad(patches, [side - 1] * 4), side, stride=1)
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))


class Block(nn.Module):
    """Three 3×3 convolutions with batch norm, a 1×1 convolution as the shortcut, leaky ReLU and max pooling.

    Leaky ReLU is monotonic, so the last one can follow the pooling with the same result.
    """

    def __init__(self, before: int, width: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((before, width, width, width)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width))
        self.pool, self.act, self.drop = nn.MaxPool2d(2), nn.LeakyReLU(SLOPE), drop
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, width, h // 2, w // 2]` for `x` `[n, before, h, w]`."""
        out: Tensor = self.drop(self.act(self.pool(self.layers(x) + self.shortcut(x))))
        return out


class ResNet12(Backbone):
    """Four residual blocks of three convolutions; by default 640 features of an image of at least 16 pixels.

    An image of 84 pixels and three channels takes 12.4 million weights, those of batch norm included.

    Departures from the paper:
    - Pooling at the end. The authors of MetaOptNet use all entries of the last map, 16,000 for images of 84 pixels;
      here the features are the mean over positions, as in most later papers. `backbone.readout=flatten` gives theirs.
    - Dropout and DropBlock. The authors use a rate of 0.1; here there is none by default. `backbone.dropout=0.1` gives
      theirs, but the rate of DropBlock is the same in the whole training, where theirs rises from 0 in 40,000 batches.
      No option changes that.
    - Size of the patches of DropBlock. It is 5 pixels, or the size of a smaller map, such as that of images of 28
      pixels after three blocks. No option changes that.
    """

    Config = ResNet12Options
    reference: ClassVar[str] = (
        "Lee et al. 2019, arXiv 1904.03758, section 4.1; Oreshkin, Rodríguez López, Lacoste 2018, arXiv 1805.10123"
    )

    def __init__(self, config: ResNet12Options) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, features]`.

        Raises:
            ConfigError: The inputs are not images, or smaller than 16 pixels.
        """
        channels, *sides = input_sizes(spec, "channels", "height", "width")
        if min(sides) < SMALLEST:
            raise ConfigError(
                f"ResNet-12 takes images of at least {SMALLEST} pixels, but those of the data set are"
                f" {sides[0]} × {sides[1]}.",
                where="backbone",
                remedy="choose larger images, or another backbone, such as resnet",
            )
        rate, widths = self.config.dropout, self.config.widths
        drops = [nn.Dropout(rate), nn.Dropout(rate), DropBlock(rate), DropBlock(rate)]
        blocks = [
            Block(before, width, drop)
            for (before, width), drop in zip(pairwise((channels, *widths)), drops, strict=True)
        ]
        readout = [nn.AdaptiveAvgPool2d(1)] if self.config.readout == "mean" else []
        return nn.Sequential(*blocks, *readout, nn.Flatten())
