"""Learners, networks, tasks and regularizers on which the tests of the engine compare plans, chunks and compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import split_state
from metaforge.authoring.protocols import Examples, Options, Params, Parts, Regularizer, Task, TaskShape, TaskSpec
from metaforge_plugins.learners.gradient.maml import MAML
from toys import keys, learner, sgd, smooth


class Inequality(Regularizer):
    """Adds the variance of the task losses, so that the weight of a task depends on the losses of all tasks."""

    Config = Options

    def __init__(self, config: Options) -> None:
        pass

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        return losses.var(unbiased=False)


class Uncertain(Regularizer):
    """Adds products of two terms and of the losses of different tasks, so that no term has the same weight twice."""

    Config = Options
    terms = frozenset({"entropy_before", "entropy_after"})

    def __init__(self, config: Options) -> None:
        pass

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        rates = terms["entropy_after"] / terms["entropy_before"]
        return (losses * rates).var(unbiased=False) + 0.3 * rates.prod()


class Theil(Regularizer):
    """Adds the Theil index of the losses before adaptation."""

    Config = Options
    terms = frozenset({"loss_before"})

    def __init__(self, config: Options) -> None:
        pass

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        shares = terms["loss_before"] / terms["loss_before"].mean()
        return 0.7 * (shares * shares.log()).mean()


class Shrinkage(Regularizer):
    """Adds half the sum of squared weights of one layer."""

    Config = Options

    def __init__(self, config: Options) -> None:
        pass

    def penalty(self, values: Params) -> Tensor:
        return 0.5 * values["model.0.0.weight"].square().sum()


def maml(norm: str = "transductive", **options: Any) -> Any:
    """Return MAML on a network with batch norm; its three inner steps adapt the norm's scale and shift too."""
    return learner(MAML, backbone=smooth("batch"), steps=3, norm=norm, adapt="all", **options)


def task_losses(built: Any, values: Params, batch: Task) -> Callable[[Params], Tensor]:
    """Return the task losses `[tasks]` as a function of the parameters, computed in a plain loop."""
    state = split_state(values)[1]

    def losses(params: Params) -> Tensor:
        count = len(batch.support.x)
        singles = [tree_map(lambda t, i=i: t[i], batch) for i in range(count)]
        return torch.stack([built.loss(params | state, one, k)[0] for one, k in zip(singles, keys(count), strict=True)])

    return losses


def images(count: int) -> Task:
    """Return tasks of small images `[count, n, 2, 6, 6]`."""
    draw = torch.Generator().manual_seed(5)

    def examples(each: int) -> Examples:
        y = torch.arange(3).repeat_interleave(each).expand(count, -1)
        return Examples(torch.randn(count, 3 * each, 2, 6, 6, generator=draw, dtype=torch.float64), y)

    return Task(examples(1), examples(2))


class Convolutional(nn.Module):
    """A smooth network of one convolution, a norm, and optionally dropout and max pooling."""

    def __init__(self, norm: nn.Module, dropout: float = 0.0, *, pool: bool = False, **options: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, **options), norm, nn.Tanh(), nn.Dropout(dropout))
        if pool:
            self.layers.append(nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x).flatten(1)
        return features


class Fused(Convolutional):
    """The same with a norm that is called as a function, so that MetaForge cannot replace it as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(super().forward(x), (64,), self.layers[1].weight.repeat(16))


CONVOLUTIONS: dict[str, Any] = {
    "batch norm": lambda: Convolutional(nn.BatchNorm2d(4)),
    "layer norm": lambda: Convolutional(nn.LayerNorm([4, 4, 4])),
    "instance norm": lambda: Convolutional(nn.InstanceNorm2d(4, affine=True)),
    "group norm": lambda: Convolutional(nn.GroupNorm(2, 4)),
    "dropout": lambda: Convolutional(nn.BatchNorm2d(4), dropout=0.4),
    "groups": lambda: Convolutional(nn.BatchNorm2d(4), groups=2),
    "dilation": lambda: Convolutional(nn.BatchNorm2d(4), dilation=2),
    "strides and padding": lambda: Convolutional(nn.BatchNorm2d(4), stride=2, padding=1),
}


def pooling() -> nn.Module:
    """Return a network that pools."""
    return Convolutional(nn.BatchNorm2d(4), dropout=0.4, groups=2, pool=True)


class Viewed(nn.Module):
    """A network that calls `view` on its features, which a contiguous batch of one task allows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(x.size(0), -1)


class Flipped(Viewed):
    """A network that calls `vmap` itself, over two views of each image."""

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([x, x.flip(-1)])
        return torch.vmap(self.body)(views).mean(0).flatten(1)


def wide() -> nn.Module:
    """Return a network whose shared weights, copied per task, would be larger than the input of their layer."""
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 30, 1), nn.Flatten())


def image_learner(backbone: Any, cls: Any = MAML, **options: Any) -> Any:
    """Return a learner of the tasks of `images`; MAML, or one of another class."""
    parts = Parts(TaskSpec("classification", (2, 6, 6), 3, TaskShape(3, 1, 2)), backbone, sgd(0.2), {})
    if cls is MAML:
        options = {"steps": 2, "adapt": "all", **options}
    return cls(cls.Config(**options), parts)
