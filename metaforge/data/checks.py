"""Checks what a data set returns against its contract: fully once per run and split, shapes and dtypes always."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from metaforge.authoring.kinds import task_kind
from metaforge.authoring.protocols import Dataset, Task, TaskShape, TaskSpec
from metaforge.data.varied import Composition, EpisodeBounds, compose, varied_spec
from metaforge.errors import DataError, MetaForgeError, PluginError

T = TypeVar("T")


def checked_spec(dataset: Dataset, split: str, shape: TaskShape, *, seed: int) -> TaskSpec:
    """Return the spec of a split's tasks after checking that episode 0 agrees with it.

    Args:
        dataset: The data set.
        split: Name of the split, such as `train`.
        shape: Ways, shots and queries of a task.
        seed: Seed of the episodes.

    Raises:
        PluginError: The data set breaks its contract: shapes, dtypes or labels differ from its spec, or it raises an
            exception that is not a `MetaForgeError`.
        DataError: Values are not finite.
        MetaForgeError: Whatever error of this class the data set itself raises.
    """
    spec = expected_spec(dataset, _call(dataset, "spec", lambda: dataset.spec(split, shape)), shape)
    sample = _call(dataset, "sample", lambda: dataset.sample(split, shape, 0, 1, seed=seed))
    task = expected_tasks(dataset, sample, spec, 1)
    for part, per_class in (("support", shape.shots), ("query", shape.queries)):
        x, y = getattr(task, part)
        _require_finite(dataset, f"the inputs of the {part} set", x)
        if spec.kind.classes:
            _check_labels(dataset, part, y[0], shape.ways, per_class)
            continue
        _require_finite(dataset, f"the targets of the {part} set", y)
        if wrong := "" if spec.kind.wrong_targets is None else spec.kind.wrong_targets(y):
            _contract_error(dataset, f"the targets of the {part} set {wrong}")
    if spec.classes:
        _check_class_numbers(dataset, torch.as_tensor(task.classes), spec.classes if split == "train" else None)
    return spec


def checked_varied_spec(dataset: Dataset, split: str, bounds: EpisodeBounds, *, seed: int) -> TaskSpec:
    """Return the spec of a split's varied tasks of the most classes after checking that episode 0 agrees with it.

    Args:
        dataset: The data set.
        split: Name of the split, such as `train`.
        bounds: The bounds of the tasks.
        seed: Seed of the episodes.

    Raises:
        PluginError: The data set breaks its contract.
        DataError: The split has too few classes, or values are not finite.
        MetaForgeError: Whatever error of this class the data set itself raises.
    """
    spec = _call(dataset, "spec", lambda: varied_spec(dataset, split, bounds))
    sizes = _call(dataset, "class_sizes", lambda: dataset.class_sizes(split))
    parts = compose(sizes, bounds, 0, seed=seed, split=split)
    drawn = _call(dataset, "draw", lambda: dataset.draw(split, *parts, 0, seed=seed))
    task = expected_task(dataset, drawn, spec, parts)
    for name, part, counts in (
        ("support", task.support, parts.shots),
        ("query", task.query, [parts.queries] * len(parts.classes)),
    ):
        _require_finite(dataset, f"the inputs of the {name} set", part.x)
        if part.y.bincount(minlength=len(counts)).tolist() != counts:
            _contract_error(dataset, f"draw does not return the numbers of examples of the {name} set that it should")
    if spec.classes:
        _check_class_numbers(dataset, torch.as_tensor(task.classes), spec.classes if split == "train" else None)
    return spec


def expected_spec(dataset: Dataset, spec: Any, shape: TaskShape) -> TaskSpec:
    """Return what `Dataset.spec` returned for a shape; raise `PluginError` unless it is a spec of such tasks."""
    kind = task_kind(dataset.kind)
    if not isinstance(spec, TaskSpec) or (spec.kind, spec.shape) != (kind, shape):
        _contract_error(dataset, f"spec returns {spec!r:.200} for {kind.name} tasks of {shape}")
    return spec


def expected_tasks(dataset: Dataset, tasks: Any, spec: TaskSpec, count: int) -> Task:
    """Return what `Dataset.sample` returned, if it has the shapes and dtypes that the spec promises.

    The values of the tensors are not read, so this costs nothing beside sampling.

    Args:
        dataset: The data set.
        tasks: What `sample` returned.
        spec: What `spec` returned for these tasks.
        count: The number of tasks that were asked for.

    Raises:
        PluginError: It is not a batch of such tasks.
    """
    for part, per_class in (("support", spec.shape.shots), ("query", spec.shape.queries)):
        x, y = _inputs_and_targets(dataset, tasks, part)
        leading = (count, spec.shape.ways * per_class)
        _check_tensor(dataset, f"the inputs of the {part} set", x, (*leading, *spec.x_shape), integral=torch.uint8)
        if not spec.kind.classes:
            targets = (*leading, *spec.kind.shape_of_target(spec.outputs))
            _check_tensor(dataset, f"the targets of the {part} set", y, targets)
        else:
            _check_tensor(dataset, f"the labels of the {part} set", y, leading, integral=torch.int64, floating=False)
    if spec.classes:
        _check_classes(dataset, tasks, (count, spec.shape.ways))
    batch: Task = tasks
    return batch


def expected_task(dataset: Dataset, task: Any, spec: TaskSpec, parts: Composition) -> Task:
    """Return what `Dataset.draw` returned, if it has the shapes and dtypes of a task of these parts.

    Args:
        dataset: The data set.
        task: What `draw` returned.
        spec: The spec of varied tasks.
        parts: The classes of the task, and the numbers of their examples.

    Raises:
        PluginError: It is no such task.
    """
    for part, count in (("support", sum(parts.shots)), ("query", len(parts.classes) * parts.queries)):
        x, y = _inputs_and_targets(dataset, task, part)
        _check_tensor(dataset, f"the inputs of the {part} set", x, (count, *spec.x_shape), integral=torch.uint8)
        _check_tensor(dataset, f"the labels of the {part} set", y, (count,), integral=torch.int64, floating=False)
    if spec.classes:
        _check_classes(dataset, task, (len(parts.classes),))
    drawn: Task = task
    return drawn


def _check_classes(dataset: Dataset, tasks: Task, shape: tuple[int, ...]) -> None:
    """Check shape and dtype of the class numbers of tasks."""
    classes: Any = tasks.classes
    if not isinstance(classes, Tensor) or classes.dtype != torch.int64 or tuple(classes.shape) != shape:
        found = f"{classes.dtype} {list(classes.shape)}" if isinstance(classes, Tensor) else repr(classes)[:100]
        _contract_error(dataset, f"the classes of tasks are {found}, not torch.int64 {list(shape)}")


def _check_class_numbers(dataset: Dataset, classes: Tensor, number: int | None) -> None:
    """Check that the classes of tasks `[..., ways]` are distinct, and below the number of classes if it is known."""
    least, most = int(classes.min()), int(classes.max())
    if least < 0 or (number is not None and most >= number):
        _contract_error(dataset, f"the classes of tasks are {least} to {most}, not 0 to the number of classes minus 1")
    if (classes.sort(-1).values.diff(dim=-1) == 0).any():
        _contract_error(dataset, "the classes of a task are not distinct")


def _call(dataset: Dataset, method: str, function: Callable[[], T]) -> T:
    """Return what a method of a data set returns; any exception but a `MetaForgeError` becomes a `PluginError`."""
    try:
        return function()
    except (MetaForgeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        _contract_error(dataset, f"{method} raises {type(error).__name__}: {error}", error)


def _inputs_and_targets(dataset: Dataset, task: Any, part: str) -> tuple[Tensor, Tensor]:
    """Return `x` and `y` of the support or query set of a task."""
    x, y = (getattr(getattr(task, part, None), name, None) for name in "xy")
    if not isinstance(task, Task) or not isinstance(x, Tensor) or not isinstance(y, Tensor):
        _contract_error(dataset, f"sample returns {type(task).__name__} with {type(x).__name__}, not a Task of tensors")
    return x, y


def _check_tensor(
    dataset: Dataset,
    what: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    *,
    integral: torch.dtype | None = None,
    floating: bool = True,
) -> None:
    """Check shape and dtype: `integral`, or any floating dtype if `floating`."""
    if tuple(tensor.shape) != shape:
        _contract_error(
            dataset, f"{what} have the shape {list(tensor.shape)}, not {list(shape)} (episodes, examples, ...)"
        )
    if tensor.dtype != integral and not (floating and tensor.is_floating_point()):
        allowed = " or ".join([*([str(integral)] if integral else []), *(["a floating dtype"] if floating else [])])
        _contract_error(dataset, f"{what} are {tensor.dtype}, not {allowed}")


def _require_finite(dataset: Dataset, what: str, tensor: Tensor) -> None:
    """Raise `DataError` if some values are not finite."""
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise DataError(
            f"{bad:,} of {tensor.numel():,} values in {what} are not finite",
            where=f"episode 0 of the data set {_name(dataset)}",
            remedy="find the examples with `metaforge data preview`, and correct or remove them",
        )


def _check_labels(dataset: Dataset, part: str, labels: Tensor, ways: int, per_class: int) -> None:
    """Check that each of the labels 0 to `ways` - 1 occurs `per_class` times."""
    if int(labels.min()) < 0 or int(labels.max()) >= ways:
        span = f"{int(labels.min())} to {int(labels.max())}"
        _contract_error(dataset, f"the labels of the {part} set are {span}, not 0 to {ways - 1}")
    counts = labels.bincount(minlength=ways).tolist()
    wrong = [
        f"class {label}: found {count}, needed {per_class}" for label, count in enumerate(counts) if count != per_class
    ]
    if wrong:
        _contract_error(
            dataset, f"the {part} set does not have {per_class} examples of each class ({'; '.join(wrong[:5])})"
        )


def _contract_error(dataset: Dataset, what: str, cause: BaseException | None = None) -> NoReturn:
    raise PluginError(
        f"The data set {_name(dataset)} breaks its contract: {what}.",
        where=f"{type(dataset).__module__}:{type(dataset).__qualname__}",
        remedy="its author can find such errors with `metaforge check`; METAFORGE_DEBUG=1 shows the traceback",
    ) from cause


def _name(dataset: Dataset) -> str:
    return type(dataset).__name__
