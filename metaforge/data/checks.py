"""What a data set hands over held against what it promises: looked at once per run and split, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from metaforge.authoring.protocols import Dataset, Task, TaskShape, TaskSpec
from metaforge.errors import DataError, MetaForgeError, PluginError

T = TypeVar("T")


def checked_spec(dataset: Dataset, split: str, shape: TaskShape, *, seed: int) -> TaskSpec:
    """Return the spec of a split's tasks of a shape, once the first episode has been found to be as it says.

    Raises what the data set says itself, `PluginError` where it breaks its contract, and `DataError` where its numbers
    are not finite.
    """
    spec = _asked(dataset, "spec", lambda: dataset.spec(split, shape))
    if not isinstance(spec, TaskSpec) or (spec.kind, spec.shape) != (dataset.kind, shape):
        _refuse(dataset, f"spec returns {spec!r:.200} for {dataset.kind} tasks of {shape}")
    task = _asked(dataset, "sample", lambda: dataset.sample(split, shape, 0, 1, seed=seed))
    for part, each in (("support", shape.shots), ("query", shape.queries)):
        x, y = _pair(dataset, task, part)
        lead = (1, shape.ways * each)
        _check_tensor(dataset, f"the inputs of the {part} set", x, (*lead, *spec.x_shape), integral=torch.uint8)
        if spec.kind == "regression":
            _check_tensor(dataset, f"the targets of the {part} set", y, (*lead, spec.outputs))
        else:
            _check_tensor(dataset, f"the labels of the {part} set", y, lead, integral=torch.int64, floating=False)
            _check_labels(dataset, part, y[0], shape.ways, each)
    return spec


def _asked(dataset: Dataset, method: str, ask: Callable[[], T]) -> T:
    """Return what a method of a data set returns; whatever it raises without a word for people is its author's."""
    try:
        return ask()
    except MetaForgeError:
        raise
    except Exception as error:
        _refuse(dataset, f"{method} raises {type(error).__name__}: {error}", error)


def _pair(dataset: Dataset, task: Any, part: str) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of one half of a task."""
    x, y = (getattr(getattr(task, part, None), name, None) for name in "xy")
    if not isinstance(task, Task) or not isinstance(x, Tensor) or not isinstance(y, Tensor):
        _refuse(dataset, f"sample returns {type(task).__name__} with {type(x).__name__}, not a Task of tensors")
    return x, y


def _check_tensor(
    dataset: Dataset,
    what: str,
    found: Tensor,
    shape: tuple[int, ...],
    *,
    integral: torch.dtype | None = None,
    floating: bool = True,
) -> None:
    if tuple(found.shape) != shape:
        _refuse(dataset, f"{what} have the shape {list(found.shape)}, not {list(shape)} (episodes, examples, ...)")
    if found.dtype != integral and not (floating and found.is_floating_point()):
        wanted = " or ".join([*([str(integral)] if integral else []), *(["a type of floats"] if floating else [])])
        _refuse(dataset, f"{what} are {found.dtype}, not {wanted}")
    bad = int((~found.isfinite()).sum())
    if bad:
        raise DataError(
            f"{what} have {bad:,} values of {found.numel():,} that are not finite",
            where=f"episode 0 of the data set {_name(dataset)}",
            remedy="find out with `metaforge data preview` which examples they are in, and mend or remove those",
        )


def _check_labels(dataset: Dataset, part: str, labels: Tensor, ways: int, each: int) -> None:
    """Refuse labels that are not 0 to `ways` - 1, `each` times each."""
    if int(labels.min()) < 0 or int(labels.max()) >= ways:
        span = f"{int(labels.min())} to {int(labels.max())}"
        _refuse(dataset, f"the labels of the {part} set are {span}, not 0 to {ways - 1}")
    counts = labels.bincount(minlength=ways).tolist()
    wrong = [f"class {label}: found {count}, needed {each}" for label, count in enumerate(counts) if count != each]
    if wrong:
        _refuse(dataset, f"the {part} set has other numbers of examples than were asked for ({'; '.join(wrong[:5])})")


def _refuse(dataset: Dataset, what: str, cause: Exception | None = None) -> NoReturn:
    raise PluginError(
        f"The data set {_name(dataset)} breaks its contract: {what}.",
        where=f"{type(dataset).__module__}:{type(dataset).__qualname__}",
        remedy="its author can find such faults with `metaforge check`; METAFORGE_DEBUG=1 shows the trace",
    ) from cause


def _name(dataset: Dataset) -> str:
    return type(dataset).__name__
