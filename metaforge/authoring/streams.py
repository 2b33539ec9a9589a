"""The base class of learners that see a task as one stream of examples."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from metaforge.authoring.keys import fold_in, permutation
from metaforge.authoring.losses import accuracy, accuracy_by_instance, cross_entropy
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.protocols import Aux, Key, Params, Task


class StreamLearner(ModelLearner):
    """Base class of learners that classify a stream: each example is scored before its label is known.

    Support and query set of a task are one stream in random order. The loss is the mean over all examples, and the
    metrics `instance_1`, `instance_2`, … are the accuracy at the first, second, … example of a class. What happens
    with a support set and queries apart from each other is up to `adapt` and `predict`.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone.
        norm: Which statistics batch norm uses.
        steps: As in `ModelLearner`.
        outputs: Number of outputs of a linear head on the flattened features, or None for no head.
        context: As in `ModelLearner`.

    Example:
        A learner that scores a class by how often it has been seen:

        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Options, Parts, StreamLearner, TaskShape, TaskSpec, make_key, one_hot
        >>> class Counts(StreamLearner):
        ...     Config = Options
        ...
        ...     def score_stream(self, values, features, y):
        ...         seen = one_hot(y, self.spec.outputs).cumsum(0)
        ...         return torch.cat([torch.zeros_like(seen[:1]), seen[:-1]])
        ...
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         return one_hot(support.y, self.spec.outputs).sum(0)
        ...
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return fast.expand(len(x), -1)
        >>> spec = TaskSpec("classification", x_shape=(3,), outputs=2, shape=TaskShape(ways=2, shots=1, queries=5))
        >>> learner = Counts(Options(), Parts(spec, backbone=lambda: nn.Linear(3, 8)), norm="running")
        >>> learner.score_stream({}, torch.zeros(3, 8), torch.tensor([1, 1, 0]))
        tensor([[0., 0.],
                [0., 1.],
                [0., 2.]])
    """

    @abstractmethod
    def score_stream(self, values: Params, features: Tensor, y: Tensor) -> Tensor:
        """Return the logits `[n, ways]` of a stream, each computed from its own features and the examples before it.

        Args:
            values: The learner's values.
            features: The features of the examples `[n, features]`.
            y: The labels of the examples `[n]`.
        """

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy over the stream of all examples, in random order."""
        logits, y, state = self.stream(values, task, key, key)
        metrics = {"score": accuracy(logits, y)} | accuracy_by_instance(logits, y)
        return cross_entropy(logits, y), Aux(metrics, state)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the accuracy at the first, second, … example of a class, over the stream in random order."""
        logits, y, _ = self.stream(values, task, key, None)
        return accuracy_by_instance(logits, y)

    def stream(self, values: Params, task: Task, order: Key, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return the logits and labels of all examples as one stream in random order, and the changes of the state.

        Args:
            values: The learner's values.
            task: The task, of which support and query set become one stream.
            order: The key of the random order.
            key: The key of the network's noise, or None in evaluation.

        Returns:
            Logits `[n, ways]`, labels `[n]`, and what to add to the `state.` entries.
        """
        support, query, state = self.model.observe_task(values, task, key)
        features, y = torch.cat([support, query]), torch.cat([task.support.y, task.query.y])
        places = permutation(fold_in(order, "order"), len(y))
        features, y = features[places], y[places]
        return self.score_stream(values, features, y), y, state
