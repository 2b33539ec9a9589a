"""Checks of what a learner returns and does in a step; they cost nothing beside the computation itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor

from metaforge.authoring.progress import is_progress
from metaforge.authoring.protocols import Aux, Learner, Params, Tags, Task
from metaforge.errors import ContractError

DETACHED = "the loss depends on no parameter, so there is no gradient: it is detached, or computed from other tensors"


# The attributes of a learner that evaluation and records read, and the type of each.
_ATTRIBUTES: Mapping[str, type] = MappingProxyType({"tags": Tags, "norm": str, "transductive": bool, "steps": int})


def checked_learner(learner: Any) -> Learner:
    """Return a learner; raise `ContractError` unless its attributes have the types of the protocol."""
    for name, kind in _ATTRIBUTES.items():
        value = getattr(learner, name, None)
        if not isinstance(value, kind):
            raise ContractError(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
    if learner.steps < 0:
        raise ContractError(f"steps is {learner.steps}, but should be 0 or more")
    checked: Learner = learner
    return checked


def checked_loss(result: Any, state: Params, terms: Sequence[str] = ()) -> tuple[Tensor, Aux]:
    """Return what `Learner.loss` returned for one task; under `vmap`, tensors have the shapes that they have for one.

    Args:
        result: The returned value.
        state: The `state.` entries of the learner's values.
        terms: The names of the terms that regularizers read.

    Raises:
        ContractError: It is not a scalar loss with an `Aux` of scalar metrics, of changes of the state entries and of
            these terms.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Aux)):
        raise ContractError(f"loss returns {_description(result)}, not a pair of a scalar tensor and an Aux")
    loss, aux = result
    if not _is_scalar(loss) or not loss.is_floating_point():
        raise ContractError(f"the loss is {_description(loss)}, not a scalar floating-point tensor")
    for name, metric in aux.metrics.items():
        if not _is_scalar(metric):
            raise ContractError(f"the metric {name!r} is {_description(metric)}, not a scalar tensor")
    for name, change in aux.state.items():
        if name not in state:
            raise ContractError(f"Aux.state has {name!r}, but the values have no state entry of that name")
        if is_progress(name):
            raise ContractError(f"Aux.state has {name!r}, which only the run sets")
        if not isinstance(change, Tensor) or change.is_meta or change.shape != state[name].shape:
            raise ContractError(f"the change of {name!r} is {_description(change)}, not like {list(state[name].shape)}")
    for name in terms:
        if name not in aux.terms:
            raise ContractError(f"Aux.terms lacks {name!r}, which a regularizer reads")
        if not _is_scalar(aux.terms[name]) or not aux.terms[name].is_floating_point():
            raise ContractError(
                f"the term {name!r} is {_description(aux.terms[name])}, not a scalar floating-point tensor"
            )
    return loss, aux


def require_same_metrics(names: Iterable[Iterable[str]]) -> None:
    """Raise `ContractError` unless all parts of an outer step have metrics of the same names.

    Args:
        names: The names of the metrics of each part, at least one.
    """
    each = [frozenset(one) for one in names]
    if different := frozenset().union(*each) - each[0].intersection(*each):
        raise ContractError(f"tasks of two shapes have different metrics: {', '.join(sorted(different))}")


def checked_term(value: Any, method: str, owner: object) -> Tensor:
    """Return what a method of a regularizer returned, a term of the outer loss.

    Raises:
        ContractError: It is no scalar. Its owner is the regularizer, which has returned before this is seen.
    """
    if not _is_scalar(value) or not value.is_floating_point():
        raise ContractError(f"{method} returns {_description(value)}, not a scalar floating-point tensor", owner=owner)
    term: Tensor = value
    return term


def checked_values(values: Any) -> Params:
    """Return what `Learner.init` returned; raise `ContractError` unless it has floating-point tensors by name."""
    if not isinstance(values, dict):
        raise ContractError(f"init returns {_description(values)}, not a dictionary of tensors")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
            raise ContractError(f"init returns {name!r} as {_description(value)}, not a floating-point tensor")
    return values


@contextmanager
def unmodified(values: Params, tasks: Task, keys: Tensor | None = None) -> Iterator[None]:
    """Raise `ContractError` if the block, which runs a learner, changes one of its inputs in place.

    Torch counts the in-place changes of every tensor, views of it included.
    """
    classes = [tasks.classes] if isinstance(tasks.classes, Tensor) else []
    inputs = [*values.values(), *tasks.support, *tasks.query, *classes, *(() if keys is None else (keys,))]
    before = _versions(inputs)
    yield
    if before != (after := _versions(inputs)):
        parts = ["support.x", "support.y", "query.x", "query.y", *(["classes"] if classes else [])]
        names = [*values, *(f"task.{part}" for part in parts), "key"]
        changed = [name for name, first, second in zip(names, before, after, strict=False) if first != second]
        raise ContractError(f"an input is changed in place, but inputs are read-only: {', '.join(changed[:5])}")


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each tensor was changed in place; torch does not count that of inference tensors."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and not value.dim() and not value.is_meta


def _description(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"an object of type {type(value).__name__}"
    return f"a {'meta ' if value.is_meta else ''}tensor of {value.dtype} and shape {list(value.shape)}"
