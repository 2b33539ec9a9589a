"""Kinds of tasks: what a task asks for, how a prediction is trained and scored, and how its score reads.

Everything that depends on the kind of a task is asked of a `TaskKind`; no other module knows the kinds by name. Four
are built in, and a data set can bring its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from metaforge.authoring.losses import (
    accuracy,
    at_least_float32,
    binary_cross_entropy,
    cross_entropy,
    label_accuracy,
    mean_squared_error,
)
from metaforge.authoring.scale import ACCURACY, LABEL_ACCURACY, MEAN_SQUARED_ERROR, RETURN, Scale
from metaforge.errors import ContractError

if TYPE_CHECKING:
    from metaforge.authoring.protocols import Tags, Task, TaskSpec

Criterion = Callable[[Tensor, Tensor], Tensor]
"""A function of a task's predictions `[n, outputs]` and targets that returns a scalar."""


@dataclass(frozen=True, repr=False)
class TaskKind:
    """A kind of task.

    Attributes:
        name: Name of the kind: `Tags.kinds` and the `defaults` of plugins use it.
        loss: The task loss of predictions `[n, outputs]` and targets, differentiable twice.
        score: The score of a task, from predictions and targets.
        scale: How the score is named, compared and printed.
        chance: The score of a task without a look at the inputs; None if there is none.
        floor: The score of a simple method, which a learner should exceed; None if there is none.
        classes: Whether a task has classes. Its targets are then class indices `[n]` (int64), equally many of each.
        target_shape: Shape of the target of one example, which is a float tensor. None stands for `(outputs,)`.
        wrong_targets: Returns what is wrong with targets, as the end of a sentence, and `""` if nothing is.
        supervised: Whether a prediction is compared with a target. A learner with the tag `other_kinds` solves every
            supervised kind that needs no key, by its loss.
        needs_key: Whether evaluation passes a key to `Learner.adapt` and `Learner.predict`, for the noise of an
            environment. It is the same for every learner.
        picture: How tasks are drawn: `classes` (images with their predicted class), `curves` (targets and predictions
            over an input that is one number, or over a grid, see `Dataset.grid`), or None.

    Raises:
        ValueError: The name is empty, is longer than 100 characters or has control characters.

    Example:
        Regression with the absolute error, which is neither trained nor printed as a square:

        >>> import torch
        >>> from metaforge.authoring import Scale, TaskKind
        >>> def absolute_error(prediction, y):
        ...     return (prediction - y).abs().mean()
        >>> kind = TaskKind("metres", absolute_error, absolute_error, Scale("error", higher_is_better=False, unit="m"))
        >>> kind.score(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [3.0]]))
        tensor(0.5000)
    """

    name: str
    loss: Criterion
    score: Criterion
    scale: Scale
    chance: Callable[[Task, TaskSpec], Tensor] | None = None
    floor: Callable[[Task, TaskSpec], Tensor] | None = None
    classes: bool = False
    target_shape: tuple[int, ...] | None = None
    wrong_targets: Callable[[Tensor], str] | None = None
    supervised: bool = True
    needs_key: bool = False
    picture: Literal["classes", "curves"] | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 100 or not self.name.isprintable():
            raise ValueError(f"the name of a kind of task is {self.name[:100]!r}; use 1 to 100 printable letters")

    def __repr__(self) -> str:
        return f"TaskKind({self.name!r})"

    def shape_of_target(self, outputs: int) -> tuple[int, ...]:
        """Return the shape of the target of one example, in tasks with this number of outputs."""
        if self.classes:
            return ()
        return (outputs,) if self.target_shape is None else self.target_shape

    def solved_by(self, tags: Tags) -> bool:
        """Return whether a learner with these tags solves tasks of this kind."""
        # With a key, a learner that knows nothing of the kind would draw its own noise of training in evaluation.
        generic = self.supervised and not self.needs_key
        return self.name in tags.kinds or (generic and tags.other_kinds)


def task_kind(kind: TaskKind | str) -> TaskKind:
    """Return a kind of task.

    Args:
        kind: The kind itself, or the name of a built-in one.

    Returns:
        The kind.

    Raises:
        ContractError: It is neither.

    Example:
        >>> from metaforge.authoring import task_kind
        >>> task_kind("regression").scale.title
        'mean squared error'
    """
    if isinstance(kind, TaskKind):
        return kind
    if kind not in KINDS:
        raise ContractError(f"{kind!r} is neither a TaskKind nor one of {', '.join(KINDS)}")
    return KINDS[kind]


def criterion(kind: TaskKind | str) -> Criterion:
    """Return the task loss of a kind of task.

    Args:
        kind: The kind, or the name of a built-in one.

    Returns:
        A function of predictions `[n, outputs]` and targets that returns a scalar.

    Example:
        >>> from metaforge.authoring import criterion
        >>> criterion("regression").__name__
        'mean_squared_error'
    """
    return task_kind(kind).loss


def score(kind: TaskKind | str, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the score of a task: in classification the accuracy in [0, 1], in regression the mean squared error.

    Args:
        kind: The kind, or the name of a built-in one.
        prediction: Logits `[n, classes]`, or predictions `[n, outputs]`.
        y: Class indices `[n]`, or targets `[n, outputs]`.

    Returns:
        A scalar.

    Raises:
        ContractError: The score of the kind is no scalar.

    Example:
        >>> import torch
        >>> from metaforge.authoring import score
        >>> score("classification", torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    kind = task_kind(kind)
    return _scalar(kind, "score", kind.score(prediction, y))


def task_loss(kind: TaskKind, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a task; raise `ContractError` if that of its kind is no scalar."""
    return _scalar(kind, "loss", kind.loss(prediction, y))


def _scalar(kind: TaskKind, what: str, value: object) -> Tensor:
    """Return what the loss or the score of a kind returned; raise `ContractError`, owned by the kind, if no scalar."""
    if isinstance(value, Tensor) and not value.dim():
        return value
    found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ContractError(f"the {what} of the kind {kind.name!r} is {found}, not a scalar tensor", owner=kind)


def nearest_targets(task: Task) -> Tensor:
    """Return, for each query of a task, the target of the nearest support example.

    The distance is Euclidean on raw inputs, in float64. If several support examples are equally near, the first is
    used.

    Args:
        task: One task.

    Returns:
        Targets of the queries, of the shape and type of `task.query.y`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Examples, Task, nearest_targets
        >>> support = Examples(torch.tensor([[0.0], [10.0]]), torch.tensor([1, 0]))
        >>> nearest_targets(Task(support, Examples(torch.tensor([[9.0]]), torch.tensor([0]))))
        tensor([0])
    """
    support, query = (part.x.flatten(1).double() for part in (task.support, task.query))
    distances = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
    return task.support.y[distances.argmin(-1)]


def _one_of_the_ways(task: Task, spec: TaskSpec) -> Tensor:
    return torch.tensor(1 / spec.shape.ways, dtype=torch.float64)


def _nearest_class(task: Task, spec: TaskSpec) -> Tensor:
    return (nearest_targets(task) == task.query.y).double().mean()


def _mean_target(task: Task, spec: TaskSpec) -> Tensor:
    return mean_squared_error(task.support.y.double().mean(0), task.query.y.double())


def _nearest_target(task: Task, spec: TaskSpec) -> Tensor:
    return mean_squared_error(nearest_targets(task).double(), task.query.y.double())


def _majority(task: Task, spec: TaskSpec) -> Tensor:
    # Above zero, as a logit is, where a label is set in more than half of the support examples.
    return label_accuracy((task.support.y.double().mean(0) - 0.5).expand_as(task.query.y), task.query.y)


def _nearest_labels(task: Task, spec: TaskSpec) -> Tensor:
    return label_accuracy(nearest_targets(task).double() - 0.5, task.query.y)


def _not_zeros_and_ones(y: Tensor) -> str:
    wrong = y[(y != 0) & (y != 1)]
    return f"have the value {float(wrong[0]):g}, but should be 0 or 1" if len(wrong) else ""


def _loss_of_return(returns: Tensor, y: Tensor) -> Tensor:
    return -_mean_return(returns, y)


def _mean_return(returns: Tensor, y: Tensor) -> Tensor:
    return at_least_float32(returns).mean()


CLASSIFICATION = TaskKind(
    "classification",
    cross_entropy,
    accuracy,
    ACCURACY,
    chance=_one_of_the_ways,
    floor=_nearest_class,
    classes=True,
    picture="classes",
)
"""One of several classes: logits `[n, classes]`, class indices `[n]`, cross-entropy, accuracy."""

REGRESSION = TaskKind(
    "regression",
    mean_squared_error,
    mean_squared_error,
    MEAN_SQUARED_ERROR,
    chance=_mean_target,
    floor=_nearest_target,
    picture="curves",
)
"""Numbers: predictions and targets `[n, outputs]`, mean squared error."""

# The score is not F1: of a task with few queries, F1 is undefined where a label is neither set nor predicted, and its
# mean over tasks has no plain meaning. The majority of each label in the support set, which is printed beside the
# accuracy, shows how much of it rare labels alone give.
MULTI_LABEL = TaskKind(
    "multi-label",
    binary_cross_entropy,
    label_accuracy,
    LABEL_ACCURACY,
    chance=_majority,
    floor=_nearest_labels,
    wrong_targets=_not_zeros_and_ones,
)
"""Any number of labels: logits and targets (0 or 1) `[n, outputs]`, binary cross-entropy, accuracy per label."""

INTERACTION = TaskKind("interaction", _loss_of_return, _mean_return, RETURN, supervised=False, needs_key=True)
"""Acting in an environment, whose parameters are the inputs: predictions are returns `[n, outputs]`, to be increased.

The targets `[n, outputs]` are not read; zeros will do.
"""

KINDS: Mapping[str, TaskKind] = MappingProxyType(
    {kind.name: kind for kind in (CLASSIFICATION, REGRESSION, MULTI_LABEL, INTERACTION)}
)
"""The built-in kinds of tasks by name."""
