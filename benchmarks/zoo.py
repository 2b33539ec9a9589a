"""The networks of `docs/networks.md`: layers of torch, patterns of user code, and networks of other libraries."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize


class Entry(NamedTuple):
    """A network of the zoo: how it is built, and the shape of one input."""

    build: Callable[[], nn.Module]
    x_shape: tuple[int, ...]


def _vector(*layers: Callable[[], nn.Module]) -> Entry:
    """Return layers on eight features, which a linear layer computes."""
    return Entry(lambda: nn.Sequential(nn.Linear(6, 8), *(layer() for layer in layers), nn.Linear(8, 4)), (6,))


def _features(layer: Callable[[], nn.Module], *, x_shape: tuple[int, ...]) -> Entry:
    """Return a layer on inputs of any shape, followed by its flattened output."""
    return Entry(lambda: nn.Sequential(layer(), nn.Flatten()), x_shape)


def _image(layer: Callable[[], nn.Module]) -> Entry:
    """Return a layer on four channels of images, which a convolution computes."""
    return Entry(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), layer(), nn.Flatten()), (1, 8, 8))


class Wrapped(nn.Module):
    """A function of the output of a linear layer, of the training flag and of nothing else."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor], features: int = 8) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, features), function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(self.linear(x), self.training)


class First(nn.Module):
    """The first output of a layer with several, at the last position of a sequence if there is one."""

    def __init__(self, layer: nn.Module, *, arguments: int = 1) -> None:
        super().__init__()
        self.layer, self.arguments = layer, arguments

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, features]` for sequences `[n, length, features]`."""
        out: Tensor = self.layer(*(x,) * self.arguments)[0]
        return out[:, -1]


class Pooled(nn.Module):
    """A layer that also returns indices, or takes several inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.layer = nn.Linear(6, 5), nn.Linear(6, 7), layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for two linear functions of the input."""
        out: Tensor = self.layer(self.first(x), self.second(x))
        return out


class Words(nn.Module):
    """An embedding of inputs that are rounded to whole numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded inputs, flattened."""
        out: Tensor = self.layer((x.abs() * 3).long().clamp(max=9)).flatten(1)
        return out


def _sequence(kind: type[nn.Module], **options: Any) -> Entry:
    return Entry(lambda: First(kind(6, 4, batch_first=True, **options)), (5, 6))


ACTIVATIONS = (
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid"),
    *("Tanh", "Tanhshrink", "Softplus", "Softsign", "Softshrink", "Hardshrink", "Hardtanh", "Hardsigmoid", "Hardswish"),
)

LAYERS: Mapping[str, Entry] = {
    "Linear": _vector(),
    "Bilinear": Entry(lambda: Pooled(nn.Bilinear(5, 7, 4)), (6,)),
    "Identity": _vector(nn.Identity),
    **{name: _vector(getattr(nn, name)) for name in ACTIVATIONS},
    "ReLU(inplace)": _vector(partial(nn.ReLU, inplace=True)),
    "GLU": Entry(lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU()), (6,)),
    "Threshold": _vector(partial(nn.Threshold, 0.1, 0.2)),
    "Softmax": _vector(partial(nn.Softmax, -1)),
    "Softmin": _vector(partial(nn.Softmin, -1)),
    "LogSoftmax": _vector(partial(nn.LogSoftmax, -1)),
    "RReLU": _vector(nn.RReLU),
    "Conv1d": _features(partial(nn.Conv1d, 2, 3, 3), x_shape=(2, 9)),
    "Conv2d": _features(partial(nn.Conv2d, 2, 3, 3), x_shape=(2, 7, 7)),
    "Conv2d(groups, stride, dilation)": _features(
        partial(nn.Conv2d, 2, 4, 3, stride=2, padding=2, dilation=2, groups=2), x_shape=(2, 9, 9)
    ),
    "Conv2d(padding='same')": _features(partial(nn.Conv2d, 2, 3, 3, padding="same"), x_shape=(2, 7, 7)),
    "Conv2d(padding_mode='reflect')": _features(
        partial(nn.Conv2d, 2, 3, 3, padding=1, padding_mode="reflect"), x_shape=(2, 7, 7)
    ),
    "Conv3d": _features(partial(nn.Conv3d, 1, 2, 2), x_shape=(1, 4, 4, 4)),
    "ConvTranspose1d": _features(partial(nn.ConvTranspose1d, 2, 3, 3), x_shape=(2, 7)),
    "ConvTranspose2d": _features(partial(nn.ConvTranspose2d, 2, 3, 3), x_shape=(2, 5, 5)),
    "ConvTranspose3d": _features(partial(nn.ConvTranspose3d, 1, 2, 2), x_shape=(1, 3, 3, 3)),
    "MaxPool1d": Entry(lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.MaxPool1d(2), nn.Flatten()), (1, 10)),
    "MaxPool2d": _image(partial(nn.MaxPool2d, 2)),
    "MaxPool2d(overlapping)": _image(partial(nn.MaxPool2d, 3, 2)),
    "MaxPool3d": Entry(lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.MaxPool3d(2), nn.Flatten()), (1, 5, 5, 5)),
    "AvgPool1d": Entry(lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.AvgPool1d(2), nn.Flatten()), (1, 10)),
    "AvgPool2d": _image(partial(nn.AvgPool2d, 2)),
    "AvgPool3d": Entry(lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.AvgPool3d(2), nn.Flatten()), (1, 5, 5, 5)),
    "LPPool2d": _image(lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(3, 2))),
    "FractionalMaxPool2d": _image(partial(nn.FractionalMaxPool2d, 2, output_ratio=0.5)),
    "AdaptiveAvgPool2d": _image(partial(nn.AdaptiveAvgPool2d, 2)),
    "AdaptiveMaxPool2d": _image(partial(nn.AdaptiveMaxPool2d, 2)),
    "ZeroPad2d": _image(partial(nn.ZeroPad2d, 1)),
    "ReflectionPad2d": _image(partial(nn.ReflectionPad2d, 1)),
    "ReplicationPad2d": _image(partial(nn.ReplicationPad2d, 1)),
    "CircularPad2d": _image(partial(nn.CircularPad2d, 1)),
    "Upsample(nearest)": _image(partial(nn.Upsample, scale_factor=2)),
    "Upsample(bilinear)": _image(partial(nn.Upsample, scale_factor=2, mode="bilinear")),
    "PixelShuffle": _image(partial(nn.PixelShuffle, 2)),
    "PixelUnshuffle": _image(partial(nn.PixelUnshuffle, 2)),
    "Unfold": _image(partial(nn.Unfold, 2)),
    "ChannelShuffle": _image(partial(nn.ChannelShuffle, 2)),
    "BatchNorm1d": _vector(partial(nn.BatchNorm1d, 8)),
    "BatchNorm2d": _image(partial(nn.BatchNorm2d, 4)),
    "BatchNorm2d(affine=False)": _image(partial(nn.BatchNorm2d, 4, affine=False)),
    "BatchNorm2d in evaluation mode": _image(lambda: nn.BatchNorm2d(4).eval()),
    "BatchNorm3d": Entry(lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Flatten()), (1, 4, 4, 4)),
    "SyncBatchNorm": _image(lambda: nn.SyncBatchNorm(4)),
    "LayerNorm": _vector(partial(nn.LayerNorm, 8)),
    "RMSNorm": _vector(partial(nn.RMSNorm, 8)),
    "GroupNorm": _image(partial(nn.GroupNorm, 2, 4)),
    "InstanceNorm2d": _image(partial(nn.InstanceNorm2d, 4, affine=True)),
    "InstanceNorm2d(track_running_stats)": _image(partial(nn.InstanceNorm2d, 4, track_running_stats=True)),
    "LocalResponseNorm": _image(partial(nn.LocalResponseNorm, 2)),
    "Dropout": _vector(partial(nn.Dropout, 0.5)),
    "Dropout2d": _image(partial(nn.Dropout2d, 0.5)),
    "AlphaDropout": _vector(partial(nn.AlphaDropout, 0.5)),
    "Embedding": Entry(lambda: Words(nn.Embedding(10, 4)), (5,)),
    "EmbeddingBag": Entry(lambda: Words(nn.EmbeddingBag(10, 4)), (5,)),
    "RNN": _sequence(nn.RNN),
    "GRU": _sequence(nn.GRU),
    "LSTM": _sequence(nn.LSTM),
    "LSTM(two layers, both directions)": _sequence(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM(dropout)": _sequence(nn.LSTM, num_layers=2, dropout=0.5),
    "MultiheadAttention": Entry(lambda: First(nn.MultiheadAttention(6, 2, batch_first=True), arguments=3), (5, 6)),
    "MultiheadAttention(dropout)": Entry(
        lambda: First(nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True), arguments=3), (5, 6)
    ),
    "TransformerEncoderLayer": Entry(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Flatten()), (5, 6)
    ),
    "TransformerEncoder": Entry(
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2), nn.Flatten()
        ),
        (5, 6),
    ),
    "LazyLinear": Entry(lambda: nn.LazyLinear(4), (6,)),
}


class NormAct(nn.BatchNorm2d):
    """Batch norm with a built-in activation, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of the normalised input."""
        return functional.relu(super().forward(x))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of images, as in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input `[n, channels, h, w]`, normalised."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Aliased(nn.Module):
    """One layer under two names, whose weight is also that of another layer, as in BART and T5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of three linear layers of one weight."""
        out: Tensor = self.tied(self.again(self.first(x).tanh()).tanh())
        return out


class Twice(nn.Module):
    """One batch norm that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of norm, linear layer and norm."""
        out: Tensor = self.norm(self.linear(self.norm(x)))
        return out


class Counting(nn.Module):
    """Counts its calls in a buffer, on which its output depends."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the linear layer, scaled by the count."""
        self.calls += 1
        out: Tensor = self.linear(x) * self.calls
        return out


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the parameter."""
        return 2 * x


class Frozen(nn.Sequential):
    """A frozen layer, and a trained one."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 4))


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


def _parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(nn.Linear(6, 8), torch.jit.script(nn.BatchNorm1d(8)))


def _checkpointed(x: Tensor, training: bool) -> Tensor:
    out: Tensor = torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)
    return out


def _drop_path(x: Tensor, training: bool) -> Tensor:
    return x * x.new_empty(len(x), 1).bernoulli_(0.5).div_(0.5) if training else x


def of_torchvision(name: str, size: int, **options: Any) -> Entry:
    """Return a network of torchvision for colour images of `size` pixels."""
    return Entry(lambda: getattr(import_torchvision().models, name)(weights=None, **options), (3, size, size))


def of_timm(name: str, size: int, **options: Any) -> Entry:
    """Return a network of timm for colour images of `size` pixels."""

    def build() -> nn.Module:
        import_torchvision()
        network: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
        return network

    return Entry(build, (3, size, size))


def import_torchvision() -> Any:
    """Return torchvision, also where its compiled operators do not fit the build of torch: no network needs them."""
    if "torchvision" not in sys.modules:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

PATTERNS: Mapping[str, Entry] = {
    "subclass of batch norm (timm's BatchNormAct2d)": _image(partial(NormAct, 4)),
    "subclass of layer norm (ConvNeXt's LayerNorm2d)": _image(partial(ChannelNorm, 4)),
    "hook on batch norm": _image(lambda: _hooked(nn.BatchNorm2d(4))),
    "hook on convolution": Entry(lambda: nn.Sequential(_hooked(nn.Conv2d(1, 4, 3)), nn.Flatten()), (1, 8, 8)),
    "parametrized batch norm": _image(lambda: _parametrized(nn.BatchNorm2d(4))),
    "weight norm (parametrizations)": _vector(lambda: parametrizations.weight_norm(nn.Linear(8, 8))),
    "orthogonal (parametrizations)": _vector(lambda: parametrizations.orthogonal(nn.Linear(8, 8))),
    "spectral norm (parametrizations)": _vector(lambda: parametrizations.spectral_norm(nn.Linear(8, 8))),
    "requires_grad=False": Entry(Frozen, (6,)),
    "aliased module with a tied parameter": Entry(Aliased, (6,)),
    "one batch norm used twice": Entry(Twice, (6,)),
    "buffer changed in place": Entry(Counting, (6,)),
    "TorchScript": Entry(_scripted, (6,)),
    "F.dropout(training=self.training)": Entry(
        lambda: Wrapped(lambda x, training: functional.dropout(x, 0.5, training)), (6,)
    ),
    "F.batch_norm(training=self.training)": Entry(
        lambda: Wrapped(lambda x, training: functional.batch_norm(x, x.new_zeros(8), x.new_ones(8), training=training)),
        (6,),
    ),
    "F.layer_norm": Entry(lambda: Wrapped(lambda x, training: functional.layer_norm(x, (8,))), (6,)),
    "F.instance_norm": Entry(
        lambda: Wrapped(lambda x, training: functional.instance_norm(x.unflatten(1, (2, 4))).flatten(1)), (6,)
    ),
    "branch on self.training": Entry(lambda: Wrapped(lambda x, training: x.sin() if training else x.cos()), (6,)),
    "branch on .item()": Entry(lambda: Wrapped(lambda x, training: x if x.detach().sum().item() > 0 else -x), (6,)),
    "stochastic depth (bernoulli_)": Entry(lambda: Wrapped(_drop_path), (6,)),
    "noise (randn_like)": Entry(lambda: Wrapped(lambda x, training: x + torch.randn_like(x) if training else x), (6,)),
    "noise (uniform_)": Entry(
        lambda: Wrapped(lambda x, training: x + torch.empty(x.shape).uniform_() if training else x), (6,)
    ),
    "torch.utils.checkpoint": Entry(lambda: Wrapped(_checkpointed), (6,)),
    "F.scaled_dot_product_attention": Entry(
        lambda: Wrapped(
            lambda x, training: functional.scaled_dot_product_attention(*(x.unflatten(1, (4, 2)),) * 3).flatten(1)
        ),
        (6,),
    ),
}

NETWORKS: Mapping[str, Entry] = {
    "torchvision resnet18": of_torchvision("resnet18", 64, num_classes=5),
    "torchvision resnet50": of_torchvision("resnet50", 64, num_classes=5),
    "torchvision vgg11_bn": of_torchvision("vgg11_bn", 64, num_classes=5),
    "torchvision densenet121": of_torchvision("densenet121", 64, num_classes=5),
    "torchvision squeezenet1_1": of_torchvision("squeezenet1_1", 64, num_classes=5),
    "torchvision mobilenet_v3_small": of_torchvision("mobilenet_v3_small", 64, num_classes=5),
    "torchvision shufflenet_v2_x0_5": of_torchvision("shufflenet_v2_x0_5", 64, num_classes=5),
    "torchvision efficientnet_b0": of_torchvision("efficientnet_b0", 64, num_classes=5),
    "torchvision convnext_tiny": of_torchvision("convnext_tiny", 64, num_classes=5),
    "torchvision vit_b_16": of_torchvision("vit_b_16", 64, image_size=64, num_classes=5),
    "torchvision swin_t": of_torchvision("swin_t", 64, num_classes=5),
    "torchvision googlenet": of_torchvision("googlenet", 64, num_classes=5, aux_logits=False, init_weights=False),
    "timm resnet18": of_timm("resnet18", 64, num_classes=5),
    "timm resnet26d": of_timm("resnet26d", 64, num_classes=5),
    "timm efficientnet_b0": of_timm("efficientnet_b0", 64, num_classes=5),
    "timm efficientnet_b0 (drop path)": of_timm(
        "efficientnet_b0", 64, num_classes=5, drop_path_rate=0.2, drop_rate=0.2
    ),
    "timm convnext_atto": of_timm("convnext_atto", 64, num_classes=5),
    "timm vit_tiny_patch16_224": of_timm("vit_tiny_patch16_224", 64, img_size=64, num_classes=5),
    "timm mixer_s16_224": of_timm("mixer_s16_224", 64, img_size=64, num_classes=5),
    "timm nfnet_l0": of_timm("nfnet_l0", 64, num_classes=5),
    "timm regnetx_002": of_timm("regnetx_002", 64, num_classes=5),
    "timm ghostnet_100": of_timm("ghostnet_100", 64, num_classes=5),
}
