"""ResNet: residual networks of basic blocks, of 10, 18 or 34 layers, for small images or those of ImageNet.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016. The parameters have the names of
torchvision's, so that a file of its weights without the linear layer fits the network with `stem = "imagenet"`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec, input_sizes

# Blocks of each of the four stages.
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ResNetOptions(BackboneOptions):
    """Options of the residual network."""

    after_colon: ClassVar[str] = "depth"

    depth: Literal[10, 18, 34] = Field(18, description="layers with weights, counting the linear layer of the paper")
    stem: Literal["small", "imagenet"] = Field(
        "small",
        description="small: a 3×3 convolution, for images of about 28 to 84 pixels; imagenet: a 7×7 convolution of"
        " stride 2 and max pooling, for larger ones",
    )
    width: int = Field(64, ge=1, le=1024, description="filters of the first stage; each next stage has twice as many")


def conv(before: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps height and width, divided by the stride."""
    layer = nn.Conv2d(before, width, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm around which the input is added; the basic block of the paper."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(before, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        is_new_shape = stride != 1 or before != width
        self.downsample = (
            nn.Sequential(conv(before, width, 1, stride), nn.BatchNorm2d(width)) if is_new_shape else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, width, h / stride, w / stride]` for `x` `[n, before, h, w]`."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + self.downsample(x))
        return out


class Network(nn.Module):
    """The stem, four stages, and the mean over positions."""

    def __init__(self, channels: int, config: ResNetOptions) -> None:
        super().__init__()
        large, width = config.stem == "imagenet", config.width
        self.conv1 = conv(channels, width, 7, 2) if large else conv(channels, width, 3)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            stage(width * 2 ** max(number - 1, 0), width * 2**number, blocks, stride=1 if number == 0 else 2)
            for number, blocks in enumerate(BLOCKS[config.depth])
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[n, 8 * width]` for `x` `[n, channels, h, w]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out: Tensor = self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return out.flatten(1)


def stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Return blocks of one width, the first of which has the stride."""
    rest = [Block(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(before, width, stride), *rest)


class ResNet(Backbone):
    """Residual network of 10, 18 or 34 layers, as in `--backbone resnet:10`; by default 512 features of an image.

    Initial values are those of torchvision: the weights of convolutions are normal after He et al. by the number of
    outputs (`fan_out`), the scales of batch norm are one and its shifts zero.

    Departures from the paper:
    - No linear layer. The features are what the paper's linear layer takes, the mean over positions.
    - Stem. By default it is a 3×3 convolution of stride 1 without pooling, which keeps small images large enough for
      four stages. `backbone.stem=imagenet` gives the paper's.
    - Shortcuts. Where the shape changes, the shortcut is a 1×1 convolution with batch norm, the paper's option B for
      every depth. No option changes that.
    - Ten layers are not in the paper; few-shot papers use them (Chen et al. 2019).
    """

    Config = ResNetOptions
    reference: ClassVar[str] = "He et al. 2016, arXiv 1512.03385, table 1; Chen et al. 2019, arXiv 1904.04232"

    def __init__(self, config: ResNetOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, 8 * width]`; raise `ConfigError` without images."""
        return Network(input_sizes(spec, "channels", "height", "width")[0], self.config)
