"""The base class of learners that are trained without episodes: on support and query set together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import fold_in, uniform
from metaforge.authoring.kinds import criterion, score
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.protocols import Aux, BatchNormPolicy, Key, Params, Parts, Pass, Task


class PretrainingLearner(ModelLearner):
    """Base class of learners whose network is trained without adaptation: support and query set are one batch.

    In classification a linear classifier of all training classes, `classifier.weight` and `classifier.bias`, follows
    the network, and the score in training is the accuracy among all of them. In other kinds of tasks it is a head that
    all tasks share, `head.weight` and `head.bias`. What happens in a task is up to `adapt` and `predict`.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone.
        norm: Which statistics batch norm uses in a task.

    Example:
        A learner that scores a class by the similarity of the query to the support examples of the class:

        >>> from torch import nn
        >>> from metaforge.authoring import (
        ...     Options, Parts, Pass, PretrainingLearner, TaskShape, TaskSpec, make_key, one_hot
        ... )
        >>> class Similarity(PretrainingLearner):
        ...     Config = Options
        ...
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         return {"sums": one_hot(support.y, self.spec.outputs).T @ self.model(values, support.x, Pass(key))}
        ...
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return self.model(values, x, Pass(key)) @ fast["sums"].T
        >>> shape = TaskShape(ways=2, shots=1, queries=5)
        >>> spec = TaskSpec("classification", x_shape=(3,), outputs=2, shape=shape, classes=64)
        >>> learner = Similarity(Options(), Parts(spec, backbone=lambda: nn.Linear(3, 8)), norm="running")
        >>> learner.init(make_key(0))["classifier.weight"].shape
        torch.Size([64, 8])
    """

    # Whether the linear layer that follows the network has a bias.
    bias: ClassVar[bool] = True

    def __init__(self, config: Any, parts: Parts, *, norm: BatchNormPolicy) -> None:
        super().__init__(config, parts, norm=norm)
        kind = self.spec.kind
        self.pretrains, self.criterion = kind.classes, criterion(kind)
        self.tags = replace(self.tags, uses_classes=self.pretrains)
        layer = "classifier" if self.pretrains else "head"
        self.trained = (f"{layer}.weight", *([f"{layer}.bias"] if self.bias else []))

    def init(self, key: Key) -> Params:
        """Return the network's values, and those of the linear layer that follows it, drawn as `nn.Linear` does."""
        features, outputs = self.model.features, self.spec.classes if self.pretrains else self.spec.outputs
        shapes = zip(self.trained, ((outputs, features), (outputs,)), strict=False)
        layer = {name: (2 * uniform(fold_in(key, name), shape) - 1) / features**0.5 for name, shape in shapes}
        return super().init(key) | layer

    def output_in_training(self, values: Params, features: Tensor) -> Tensor:
        """Return the output of the linear layer for features `[n, features]`."""
        return F.linear(features, *(values[name] for name in self.trained))

    def state_in_training(self, values: Params, features: Tensor) -> Params:
        """Return what to add to state entries of the learner's own, from features `[n, features]`; none by default."""
        return {}

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the loss on support and query set together, in classification over all training classes."""
        x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
        y = torch.as_tensor(task.classes)[y] if self.pretrains else y
        features, state = self.model.observe(values, x, Pass(key, 0, "support"))
        prediction = self.output_in_training(values, features.flatten(1))
        state = state | self.state_in_training(values, features.flatten(1).detach())
        return self.criterion(prediction, y), Aux({"score": score(self.spec.kind, prediction, y).detach()}, state)
