"""The types of the values that plugins and the engine exchange.

The types that `torch.func.vmap` has to map over are named tuples and dictionaries, because it does not accept
dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from metaforge.authoring.kinds import TaskKind, task_kind

Params = dict[str, Tensor]
"""A flat dictionary of tensors with dotted names, such as `model.0.weight`."""

Key = Tensor
"""A random key: an int64 scalar tensor from which random numbers are derived (see `metaforge.authoring.keys`)."""

Fast = Any
"""What `Learner.adapt` returns for one task: tensors in any pytree, such as a dictionary of adapted weights."""

Kind = TaskKind | str
"""A kind of task, or the name of a built-in one. It decides the task loss, the score, and how the score reads."""

BatchNormPolicy = Literal["transductive", "support", "running"]
"""Which mean and variance batch norm uses.

- `transductive`: those of the current batch, so that the prediction for a query depends on the other queries.
- `support`: those of the support set, for queries too.
- `running`: those of the current batch in training, and their running average in evaluation.
"""

NormPolicy = Literal["transductive", "support", "running", "per-step"]
"""A `BatchNormPolicy`, or `per-step`: like `transductive`, and it also collects a running average per inner step."""

STATE = "state."
"""The prefix of the names of state entries, such as running statistics, which no optimiser updates."""

STEP = "state.training.step"
"""The state entry with the number of outer steps done, see `metaforge.authoring.training_progress`."""

SHARE = "state.training.share"
"""The state entry with the fraction of the training done, in [0, 1]: by outer steps, or by time if that is further."""


class Examples(NamedTuple):
    """Inputs with their targets.

    Attributes:
        x: Inputs `[n, *x_shape]`.
        y: Class indices `[n]` (int64) in classification; otherwise floating-point targets, `[n, outputs]` unless the
            kind of task has another shape.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Examples
        >>> examples = Examples(x=torch.zeros(4, 3), y=torch.tensor([0, 0, 1, 1]))
        >>> examples.x.shape
        torch.Size([4, 3])
    """

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    """One few-shot task.

    A batch of tasks has the same type, with a leading task dimension on every tensor. Only data sets and the engine
    handle batches.

    Attributes:
        support: The examples to learn from.
        query: The examples to predict.
        classes: The numbers of the task's classes in its split `[ways]` (int64): examples of label i are of the class
            `classes[i]`. An empty tuple if the data set does not number its classes.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Examples, Task
        >>> support = Examples(torch.zeros(2, 3), torch.tensor([0, 1]))
        >>> query = Examples(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
        >>> task = Task(support, query)
        >>> task.query.y
        tensor([0, 0, 1, 1])
    """

    support: Examples
    query: Examples
    classes: Tensor | tuple[()] = ()


class TaskShape(NamedTuple):
    """How many classes and examples a task has.

    Attributes:
        ways: Number of classes; 1 in a task without classes.
        shots: Number of support examples per class; 0 in the spec of tasks in which it varies.
        queries: Number of query examples per class; 0 in the spec of tasks in which it varies.

    Example:
        >>> from metaforge.authoring import TaskShape
        >>> shape = TaskShape(ways=5, shots=1, queries=15)
        >>> shape.ways * shape.queries
        75
    """

    ways: int
    shots: int
    queries: int


@dataclass(frozen=True)
class TaskSpec:
    """What a learner must know about its tasks when it is built.

    Attributes:
        kind: The kind of the tasks. The name of a built-in kind stands for it.
        x_shape: Shape of one input, without the batch dimension.
        outputs: Number of predictions per query: of classes, or of target dimensions in regression.
        shape: Numbers of classes and examples.
        classes: Number of classes of the training split, in the spec of every split; 0 if tasks have no `classes`. A
            learner's values that depend on it have one shape in training and in evaluation.

    Raises:
        ContractError: The kind is neither a `TaskKind` nor the name of a built-in one.

    Example:
        >>> from metaforge.authoring import CLASSIFICATION, TaskShape, TaskSpec
        >>> spec = TaskSpec(CLASSIFICATION, x_shape=(1, 28, 28), outputs=5, shape=TaskShape(5, 1, 15))
        >>> spec.kind.scale.metric
        'accuracy'
    """

    kind: TaskKind
    x_shape: tuple[int, ...]
    outputs: int
    shape: TaskShape
    classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", task_kind(self.kind))


class Pass(NamedTuple):
    """Which forward pass of a task this is, for norm layers and regularizers.

    Attributes:
        key: The task's key, from which the pass derives its noise; None in evaluation.
        step: Number of the inner step, from 0. A pass after the inner loop has the number of inner steps.
        role: Whether the inputs are support or query examples.
        draw: Number of the draw, from 0, if a regularizer averages the support loss over several draws of noise.

    Example:
        >>> from metaforge.authoring import Pass, make_key
        >>> Pass(make_key(0), step=2, role="support").draw
        0
    """

    key: Key | None = None
    step: int = 0
    role: Literal["support", "query"] = "query"
    draw: int = 0


class Aux(NamedTuple):
    """What a learner's loss returns in addition to its value.

    Attributes:
        metrics: Detached scalars to log, by name. The metric `score` is the score of the task's kind.
        state: What to add to the `state.` entries, by name. The engine adds the mean over the tasks of an outer step.
        terms: Scalars that the regularizers of the run read (`Parts.terms`), by name, and that are differentiated like
            the loss. A learner computes none that is not asked for; the engine ignores others.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Aux
        >>> aux = Aux({"score": torch.tensor(0.8)}, {"state.count": torch.tensor(1.0)})
        >>> aux.metrics
        {'score': tensor(0.8000)}
    """

    metrics: Params
    state: Params = {}
    terms: Params = {}
