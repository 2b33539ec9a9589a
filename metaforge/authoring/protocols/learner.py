"""The protocol of learners, what they are built from, and the tags that describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from metaforge.authoring.protocols.adapter import GradientTransform
from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.regularizer import Regularizer
from metaforge.authoring.protocols.types import Aux, Examples, Fast, Key, Params, Task, TaskSpec


@dataclass(frozen=True)
class Tags:
    """Facts about a learner, which the engine, the commands and the conformance checks read.

    The tags of a class are those of its default options. A learner whose tags depend on its options sets `self.tags` in
    `__init__`; wherever there is an instance, its tags are read. `kinds` and `needs` are read before there is one, so
    they must be the same for all options.

    Attributes:
        kinds: Names of the kinds of tasks that the learner solves.
        needs: The components that it is built from: `"backbone"`, `"adapter"`, both or none.
        adapts: Whether adaptation takes steps that can be counted.
        fixed_ways: Whether the number of outputs is fixed when the learner is built.
        stochastic: Whether the loss draws noise from its key.
        exact_meta_gradient: Whether the meta-gradient is the derivative of the value that `loss` returns. It is not
            where a method leaves terms out, as first-order methods do.
        terms: The names of the terms that `loss` can give to regularizers in `Aux.terms`.
        converges_at: Number of inner steps from which on the meta-gradient is exact, for methods that differentiate
            the solution of the inner problem and not the steps to it. The learner then has an option `steps`, the
            number of inner steps in training. 0: the number of steps does not matter.
        other_kinds: Whether the learner also solves supervised tasks of any other kind, such as that of a third
            party's data set. It then uses nothing of a kind but its loss and its score.
        uses_classes: Whether the learner reads `Task.classes`, so that it needs a data set that numbers its classes.
        varied_shots: Whether the classes of a task may have different numbers of support examples. In the spec of such
            tasks `shape.shots` and `shape.queries` are 0.

    Example:
        >>> from metaforge.authoring import Tags
        >>> Tags(needs=frozenset({"backbone"}), fixed_ways=False).adapts
        False
    """

    kinds: frozenset[str] = frozenset({"classification"})
    needs: frozenset[Literal["backbone", "adapter"]] = frozenset()
    adapts: bool = False
    fixed_ways: bool = True
    stochastic: bool = False
    exact_meta_gradient: bool = True
    terms: frozenset[str] = frozenset()
    converges_at: int = 0
    other_kinds: bool = False
    uses_classes: bool = False
    varied_shots: bool = False


class Parts(NamedTuple):
    """What a learner is built from.

    Attributes:
        spec: Specification of the tasks.
        backbone: A function that returns a new backbone module; called with `context=n`, one that takes a context
            vector of that size, see `ContextBackbone`. None unless the learner's tags need a backbone.
        adapter: The chain of the run's adapters; None unless the learner's tags need an adapter.
        regularizers: The run's regularizers, by name.
        frozen: Patterns of the names of values that nothing changes, see `metaforge.authoring.matching`. The engine
            computes no gradient for them; a learner must not adapt them to a task either.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import Parts, TaskShape, TaskSpec
        >>> spec = TaskSpec("classification", x_shape=(6,), outputs=5, shape=TaskShape(5, 1, 15))
        >>> Parts(spec, backbone=lambda: nn.Linear(6, 8)).backbone()
        Linear(in_features=6, out_features=8, bias=True)
    """

    spec: TaskSpec
    backbone: Callable[..., nn.Module] | None = None
    adapter: GradientTransform | None = None
    regularizers: Mapping[str, Regularizer] = {}
    frozen: Sequence[str] = ()

    @property
    def terms(self) -> frozenset[str]:
        """The names of the terms that the regularizers read: those that a learner's `Aux.terms` must have."""
        return frozenset(name for regularizer in self.regularizers.values() for name in regularizer.terms)


class Learner(Component, Protocol):
    """Learns from the support set of a task how to predict its queries.

    All methods are pure functions of their arguments for one task: the engine calls them under `torch.func.vmap` and
    `torch.func.grad`, in any order of nesting.

    Args:
        config: The learner's validated options, an instance of its `Config`.
        parts: What the learner is built from. `__init__` draws no random numbers. The learners of one run are built
            for tasks of several shapes and share their values.

    Attributes:
        tags: Facts about the learner; those of the class, or of the instance if they depend on the options.
        norm: The batch norm policy; `"none"` without batch norm.
        transductive: Whether the prediction for a query depends on the other queries.
        steps: Number of adaptation steps in evaluation; 0 if the learner takes none.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Aux, Examples, Learner, Options, Parts, Task, TaskShape, TaskSpec
        >>> from metaforge.authoring import cross_entropy, make_key, one_hot, score
        >>> class ClassMeans(Learner):
        ...     "Classifies a query by the distances of its input to the mean input of each class."
        ...     Config = Options
        ...     def __init__(self, config, parts):
        ...         self.ways = parts.spec.outputs
        ...     def init(self, key):
        ...         return {"scale": torch.tensor(1.0)}
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         members = one_hot(support.y, self.ways)
        ...         return members.T @ support.x / members.sum(0).unsqueeze(-1)
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return -values["scale"] * (x.unsqueeze(1) - fast).square().sum(-1)
        ...     def loss(self, values, task, key):
        ...         logits = self.predict(values, self.adapt(values, task.support), task.query.x)
        ...         accuracy = score("classification", logits, task.query.y)
        ...         return cross_entropy(logits, task.query.y), Aux({"score": accuracy.detach()})
        >>> learner = ClassMeans(Options(), Parts(TaskSpec("classification", (1,), 2, TaskShape(2, 1, 1))))
        >>> examples = Examples(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
        >>> learner.loss(learner.init(make_key(0)), Task(examples, examples), make_key(1))
        (tensor(0.3133), Aux(metrics={'score': tensor(1.)}, state={}, terms={}))
    """

    tags: Tags = Tags()
    norm: str = "none"
    transductive: bool = False
    steps: int = 0

    def __init__(self, config: Any, parts: Parts) -> None: ...

    def init(self, key: Key) -> Params:
        """Return initial values.

        Args:
            key: The key of the initial values; equal keys give equal values.

        Returns:
            Parameters to meta-learn and `state.` entries, all of floating-point type.
        """
        ...

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Fast:
        """Return what the learner has learned from a support set.

        Args:
            values: The learner's values.
            support: The support set.
            steps: Number of adaptation steps; None means the learner's own number. Every learner must accept 0.
            key: The key of the task's noise; None in evaluation, unless the kind of task needs a key.

        Returns:
            Tensors in any pytree, such as a dictionary of adapted weights.
        """
        ...

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return predictions for queries.

        Args:
            values: The learner's values.
            fast: What `adapt` returned.
            x: Query inputs `[n, *x_shape]`. Their order must not affect the predictions.
            key: The key of the task's noise; None in evaluation, unless the kind of task needs a key.

        Returns:
            Logits or predicted means `[n, outputs]`; in interaction, returns.
        """
        ...

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the loss of a task in training. Its gradient is the meta-gradient.

        A learner either differentiates through `adapt`, or returns a surrogate whose gradient is the right one.

        Args:
            values: The learner's values.
            task: The task.
            key: The key of the task's noise.

        Returns:
            A scalar; and metrics to log, the changes of the `state.` entries, and the terms that regularizers read.
        """
        ...

    def during(self, share: float) -> Learner:
        """Return the learner whose `loss` the next outer step differentiates, by default this one.

        It is for a method whose computation changes during the training, such as first order before second order. A
        number that changes is simpler and cheaper as a state entry, see `metaforge.authoring.training_progress`.

        A run calls this method of its own learner before every outer step, on the host. If it returns another object
        than for the step before, the plan of the step is chosen anew, and a compiled step is compiled anew. So build
        one learner for each phase in `__init__`, and return one of them. Evaluation always uses the run's own learner.

        Args:
            share: The fraction of the training that is done, in [0, 1]: by outer steps, or by time if that is further.

        Returns:
            A learner with values of the same names and shapes.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from metaforge.authoring import Examples, GradientTransform, InnerLoopLearner, InnerLoopOptions, Parts
            >>> from metaforge.authoring import Task, TaskShape, TaskSpec, make_key
            >>> class SecondOrder(InnerLoopLearner):
            ...     def loss(self, values, task, key):
            ...         fast, state = self.descend(values, task.support, self.config.steps, key)
            ...         return self.query_loss(values, fast, task, key, state)
            >>> class Annealed(SecondOrder):
            ...     "First order in the first third of the training, then second order."
            ...     def __init__(self, config, parts):
            ...         super().__init__(config, parts)
            ...         self.early = SecondOrder(config.model_copy(update={"adjoint": "first-order"}), parts)
            ...     def during(self, share):
            ...         return self.early if share < 1 / 3 else self

            The phases differ in the meta-gradient alone:

            >>> class Descent(GradientTransform):
            ...     def update(self, meta, grads, state, params, step):
            ...         return {name: 0.25 * g for name, g in grads.items()}, state
            >>> spec = TaskSpec("regression", x_shape=(1,), outputs=1, shape=TaskShape(ways=1, shots=1, queries=1))
            >>> learner = Annealed(InnerLoopOptions(), Parts(spec, lambda: nn.Linear(1, 1), Descent()))
            >>> values = {name: torch.ones_like(value) for name, value in learner.init(make_key(0)).items()}
            >>> task = Task(*(Examples(torch.ones(1, 1), torch.full((1, 1), 2.0)) for _ in range(2)))
            >>> def head_gradient(share):
            ...     loss = lambda values: learner.during(share).loss(values, task, make_key(1))[0]
            ...     return float(torch.func.grad(loss)(values)["model.2.bias"])
            >>> head_gradient(0.0), head_gradient(0.5)
            (-3.0, 1.5)
        """
        return self

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return additional metrics of a test task, such as a log-likelihood.

        Args:
            values: The learner's values.
            task: The task.
            key: The key of the task's noise.

        Returns:
            Scalars by name; `{}` by default.
        """
        return {}

    def deviation(self, values: Params, fast: Fast, x: Tensor) -> Tensor | None:
        """Return how uncertain the learner is of its predicted means, for pictures of regression tasks.

        Args:
            values: The learner's values.
            fast: What `adapt` returned.
            x: Query inputs `[n, *x_shape]`.

        Returns:
            Standard deviations of the targets `[n, outputs]`; None, as by default, if the learner predicts none.
        """
        return None
