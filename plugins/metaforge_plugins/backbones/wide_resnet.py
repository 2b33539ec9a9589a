"""Wide ResNet: residual networks with few but wide blocks; by default WRN-28-10.

Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec, input_sizes


class WideResNetOptions(BackboneOptions):
    """Options of the wide residual network, WRN-depth-width."""

    depth: int = Field(28, ge=10, le=100, description="number of layers with weights: 6 n + 4 for n blocks per stage")
    width: int = Field(10, ge=1, le=32, description="factor k: the stages have 16 k, 32 k and 64 k filters")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout between the two convolutions of a block")

    @field_validator("depth")
    @classmethod
    def _has_whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 4:
            raise ValueError("the depth must be 6 n + 4, such as 10, 16, 22, 28 or 40")
        return depth


def conv(before: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps height and width, divided by the stride."""
    layer = nn.Conv2d(before, width, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Block(nn.Module):
    """Batch norm, ReLU and a 3×3 convolution, twice, around which the input is added (the paper's B(3,3))."""

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(before), nn.ReLU(), conv(before, width, 3, stride)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(width), nn.ReLU(), conv(width, width, 3)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = conv(before, width, 1, stride) if before != width or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, width, h / stride, w / stride]` for `x` `[n, before, h, w]`."""
        active = self.relu1(self.norm1(x))
        out: Tensor = self.conv2(self.dropout(self.relu2(self.norm2(self.conv1(active)))))
        # A shortcut with weights takes the normalised input, as in the authors' code.
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Backbone):
    """Three stages of wide residual blocks; by default WRN-28-10 with 640 features of an image.

    WRN-28-10 has 36.5 million weights. The weights of convolutions are normal after He et al. by the number of outputs
    (`fan_out`), the scales of batch norm are one and its shifts zero.

    Departures from the paper:
    - No linear layer. The features are what the paper's linear layer takes, the mean over positions.
    - Dropout. The paper's networks with dropout have a rate of 0.3; here there is none by default.
      `backbone.dropout=0.3` gives theirs.
    """

    Config = WideResNetOptions
    reference: ClassVar[str] = "Zagoruyko, Komodakis 2016, arXiv 1605.07146, table 1"

    def __init__(self, config: WideResNetOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, 64 * width]`; raise `ConfigError` without images."""
        channels, *_ = input_sizes(spec, "channels", "height", "width")
        layers: list[nn.Module] = [conv(channels, 16, 3)]
        before = 16
        for stage in range(3):
            width = 16 * self.config.width * 2**stage
            for block in range((self.config.depth - 4) // 6):
                stride = 2 if stage and block == 0 else 1
                layers.append(Block(before, width, stride, self.config.dropout))
                before = width
        return nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
