"""Baseline++: pretraining with a cosine classifier, and in a task a new cosine classifier on fixed features.

Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019 (arXiv 1904.04232).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    BatchNormPolicy,
    Examples,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    PretrainingLearner,
    Tags,
    at_least_float32,
    cross_entropy,
    gradient,
)

# The length below which a vector is not scaled to length one: the derivative would be too large.
SHORTEST = 1e-5


class BaselinePlusPlusOptions(Options):
    """Options of Baseline++."""

    steps: int = Field(100, ge=0, le=10_000, description="gradient steps on the head of a task")
    lr: float = Field(0.1, ge=0, description="learning rate of the head of a task")
    scale: float = Field(10.0, gt=0, description="initial factor of the cosines, which pretraining learns")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class BaselinePlusPlus(PretrainingLearner):
    """Pretrains with a cosine classifier of all training classes; in a task it trains a new one on fixed features.

    It is Baseline++; a name of a plugin has no plus sign. The score in training is the accuracy among all training
    classes.

    Departures from the paper:
    - Scale of the cosines. The authors' code multiplies each cosine by a fixed factor, 10 for more than 200 classes and
      otherwise 2, and by a learned length for each class. Here one factor is learned in pretraining, for all classes,
      and is kept in a task. `learner.scale` is its initial value; no option gives a length for each class.
    - Weight decay in a task. In the authors' code it is 0.001; here the length of a class's weights does not matter, so
      there is none. No option changes that.
    - Initial head. In a task the authors draw it as `nn.Linear` does. Here the weights of every class are the mean of
      the normalised features of the support set. So no class is preferred before the first step, and other labels of
      the support set permute the predictions. No option changes that.
    - Batches of pretraining. The authors draw 16 images at random from all of them. Here support and query set of a
      task are one batch, so that each class of it has the same number of images; suggested are 60 classes with 2
      images each. No option gives images drawn regardless of their classes.
    - Batches in a task. The authors train the head on mini-batches of 4 images, with learning rate 0.01: in the paper
      on 100 of them, in their code for 100 epochs. Here each of 100 steps is on the whole support set, with learning
      rate 0.1. `learner.lr=0.01` gives their rate; no option gives mini-batches.
    - Momentum in a task. The authors' code averages the gradients of the steps (momentum and dampening 0.9). Here there
      is no momentum; with the whole support set in each step that differs little. No option changes that.
    - Network on Omniglot. The authors' has max pooling. Suggested are strided convolutions, which are faster.
      `backbone.variant=pool` gives theirs.
    - Training on Omniglot. The authors take 5 epochs by Adam with learning rate 1e-3, without a schedule. Suggested are
      3,000 outer steps with learning rate 5e-3, lowered by a cosine. `train.steps`, `train.lr=0.001` and
      `schedule.name=constant` give theirs.
    - Images of Omniglot. The authors have the split of Vinyals et al., with rotated copies as classes, enlarge the
      images to 32 pixels, crop the middle 28, and normalise by the mean and deviation of ImageNet.
      `dataset.split=file`, with the lists of the split, and `dataset.rotations=all` give their classes; no option gives
      their images.
    - Augmentation. The authors augment the images of miniImageNet and CUB; here that is up to the data set.
    """

    Config = BaselinePlusPlusOptions
    reference: ClassVar[str] = "Chen et al. 2019, arXiv 1904.04232, figure 1"
    tags: Tags = Tags(
        needs=frozenset({"backbone"}), adapts=True, fixed_ways=False, uses_classes=True, varied_shots=True
    )
    bias: ClassVar[bool] = False
    config: BaselinePlusPlusOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 60, "queries": 1, "tasks": 1, "steps": 3000, "lr": 5e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "stride-flat"},
        }
    }

    def __init__(self, config: BaselinePlusPlusOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.ways, self.steps = parts.spec.outputs, config.steps

    def init(self, key: Key) -> Params:
        """Return the network's values, the classifier of all training classes `[classes, features]`, and the scale."""
        return super().init(key) | {"scale": torch.tensor(self.config.scale)}

    def output_in_training(self, values: Params, features: Tensor) -> Tensor:
        """Return the logits of all training classes `[n, classes]`: their scaled cosines."""
        return values["scale"] * cosines(features, values["classifier.weight"])

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the head of the task `[ways, features]`, trained on the fixed features of the support set."""
        at = Pass(key, 0, "support")
        features = at_least_float32(self.model(values, support.x, at).flatten(1).detach())
        head = {"head.weight": unit(features).mean(0).repeat(self.ways, 1)}

        def objective(head: Params) -> tuple[Tensor, Params]:
            return cross_entropy(values["scale"] * cosines(features, head["head.weight"]), support.y), {}

        for _ in range(self.config.steps if steps is None else steps):
            grads, _ = gradient(objective, head, differentiable=False)
            head = {name: value - self.config.lr * grads[name] for name, value in head.items()}
        return head | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits `[n, ways]`."""
        features = at_least_float32(self.model(values | fast, x, Pass(key, 0, "query")).flatten(1))
        return values["scale"] * cosines(features, fast["head.weight"])


def unit(vectors: Tensor) -> Tensor:
    """Return vectors `[n, features]` scaled to length one, or divided by `SHORTEST` if they are shorter than that."""
    return F.normalize(vectors, dim=-1, eps=SHORTEST)


def cosines(features: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine of each feature vector `[n, features]` and the weights `[classes, features]` of each class."""
    return unit(features) @ unit(weight).T
