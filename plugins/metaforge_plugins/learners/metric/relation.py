"""Relation networks: a network that learns to compare a query with the support examples of a class.

Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network for Few-Shot Learning", CVPR 2018
(arXiv 1711.06025). Details follow the authors' code, floodsung/LearningToCompare_FSL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    Model,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    add_params,
    cross_entropy,
    fold_in,
    make_key,
    mean_squared_error,
    one_hot,
    score,
)


class RelationOptions(Options):
    """Options of relation networks."""

    hidden: int = Field(8, ge=1, le=8192, description="units of the hidden layer before the relation score")
    loss: Literal["squared-error", "cross-entropy"] = Field(
        "squared-error",
        description="of the scores and the one-hot labels, or of the logits of the scores as in softmax",
    )
    norm: Literal["running", "transductive"] = Field(
        "running", description="which statistics batch norm uses in both networks"
    )


class Relation(ModelLearner):
    """Classifies a query by a learned score of its relation to the summed support features of each class.

    Departures from the paper:
    - Batch norm. The authors' code never uses running averages, so that its scores are transductive.
      `learner.norm=transductive` gives theirs.
    - Network that compares. The authors draw the weights of its convolutions after He et al., and those of its linear
      layers from N(0, 0.01); here all are drawn as PyTorch draws them. No option gives theirs. If the backbone has flat
      features instead of a map, a hidden layer of 64 units takes the place of the convolutions.
    - Training on Omniglot. The authors take up to 1,000,000 episodes with as many as 19 queries per class, by Adam with
      learning rate 1e-3, halved every 100,000 episodes, and a meta-gradient of norm at most 0.5. Suggested are 2,000
      steps on 20 ways with 5 queries per class and learning rate 2e-3, lowered by a cosine.
    - Images of Omniglot. The authors do not invert the images and split the characters at random into 1200 and 423,
      with one rotation per episode. `dataset.invert=false`, `dataset.split=random` and `dataset.rotations=task` are the
      closest.
    """

    Config = RelationOptions
    reference: ClassVar[str] = "Sung et al. 2018, arXiv 1711.06025, section 3"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: RelationOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 2000, "lr": 2e-3, "clip": 0.5},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "relation"},
        }
    }

    def __init__(self, config: RelationOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        blank = torch.zeros(2, *parts.spec.x_shape)
        self.shape = self.model(self.model.init(make_key(0)), blank, Pass(role="support")).shape[1:]
        joint = (2 * self.shape[0], *self.shape[1:])
        build = partial(comparison, joint, config.hidden)
        self.relation = Model(build, norm=config.norm, x_shape=joint, prefix="relation", frozen=parts.frozen)
        self.norm = self.relation.norm if self.norm == "none" else self.norm
        self.transductive = self.transductive or (self.relation.norm == "transductive")

    def init(self, key: Key) -> Params:
        """Return the values of the backbone f, and those of the network g that compares."""
        return super().init(key) | self.relation.init(fold_in(key, "relation"))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the sum of f(x) over the support examples of each class, flattened `[ways, features]`."""
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        return {"classes": self.sums(features, support.y)}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logits of the relation scores `[n, ways]`."""
        query = self.model(values, x, Pass(key, 0, "query")).flatten(1)
        return self.compare(values, fast["classes"], query, key)[0]

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean of (r − 1[same class])² over all queries and classes (equation 2), or the cross-entropy."""
        support, query, state = self.model.observe_task(values, task, key)
        logits, change = self.compare(values, self.sums(support, task.support.y), query, key)
        accuracy = score("classification", logits, task.query.y).detach()
        aux = Aux({"score": accuracy}, add_params(state, change))
        if self.config.loss == "cross-entropy":
            return cross_entropy(logits, task.query.y), aux
        same = one_hot(task.query.y, self.spec.outputs, logits.dtype)
        return mean_squared_error(logits.sigmoid(), same), aux

    def sums(self, features: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the features `[n, features]` of each class `[ways, features]`."""
        return one_hot(y, self.spec.outputs, features.dtype).T @ features

    def compare(self, values: Params, classes: Tensor, query: Tensor, key: Key | None) -> tuple[Tensor, Params]:
        """Return the logits of r = g([Σ f(x_i), f(x)]) `[n, ways]` (equation 1), and the changes of state entries."""
        n, ways = len(query), len(classes)
        first = classes.unsqueeze(0).expand(n, ways, -1).reshape(n * ways, *self.shape)
        second = query.unsqueeze(1).expand(n, ways, -1).reshape(n * ways, *self.shape)
        found, state = self.relation.observe(values, torch.cat([first, second], 1), Pass(key, 0, "query"))
        return found.reshape(n, ways), state


def comparison(shape: Sequence[int], hidden: int) -> nn.Module:
    """Return g, from two feature maps (or vectors) of that shape together to the logit of a relation score."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    channels, height, width = shape
    layers: list[nn.Module] = []
    for before in (channels, channels // 2):
        layers += [nn.Conv2d(before, channels // 2, 3, padding=1), nn.BatchNorm2d(channels // 2), nn.ReLU()]
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    features = channels // 2 * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
