"""The base class of learners with one network."""

from __future__ import annotations

from typing import Any

from metaforge.authoring.keys import fold_in
from metaforge.authoring.model import Model
from metaforge.authoring.protocols import Key, Learner, NormPolicy, Params, Parts, TaskSpec


class ModelLearner(Learner):
    """Base class of learners with one network: it builds the model, and its values are the model's.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone.
        norm: Which statistics batch norm uses.
        steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
        outputs: Number of outputs of a linear head on the flattened features, or None for no head.
        context: Size of a context vector that the network gets beside the inputs; 0 for none.

    Example:
        A learner that scores a class by the similarity of the query to the support examples of the class:

        >>> from torch import nn
        >>> from metaforge.authoring import (
        ...     Aux, ModelLearner, Options, Parts, Pass, TaskShape, TaskSpec, cross_entropy, make_key, one_hot
        ... )
        >>> class Similarity(ModelLearner):
        ...     Config = Options
        ...
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         features = self.model(values, support.x, Pass(key, role="support"))
        ...         return features.T @ one_hot(support.y, self.spec.outputs)
        ...
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return self.model(values, x, Pass(key, role="query")) @ fast
        ...
        ...     def loss(self, values, task, key):
        ...         logits = self.predict(values, self.adapt(values, task.support, key=key), task.query.x, key=key)
        ...         return cross_entropy(logits, task.query.y), Aux({})
        >>> spec = TaskSpec("classification", x_shape=(3,), outputs=2, shape=TaskShape(ways=2, shots=1, queries=5))
        >>> learner = Similarity(Options(), Parts(spec, backbone=lambda: nn.Linear(3, 8)))
        >>> sorted(learner.init(make_key(0)))
        ['model.bias', 'model.weight']
    """

    spec: TaskSpec
    model: Model

    def __init__(
        self,
        config: Any,
        parts: Parts,
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        outputs: int | None = None,
        context: int = 0,
    ) -> None:
        self.config, self.spec = config, parts.spec
        self.model = Model.of(parts, norm=norm, steps=steps, outputs=outputs, context=context)
        self.norm, self.transductive = self.model.norm, self.model.transductive

    def init(self, key: Key) -> Params:
        """Return the model's values; equal for equal keys."""
        return self.model.init(fold_in(key, "model"))
