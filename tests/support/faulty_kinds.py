"""Data sets whose kind of task, or whose use of it, has one fault each, and data sets that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaforge.authoring import MULTI_LABEL, REGRESSION, Examples, Scale, Task, TaskKind, TaskSpec
from metaforge.testing.toy import ToyClasses, ToyCurves, ToyLabels, ToyWorlds


def _with_kind(name: str, kind: TaskKind, parent: type[ToyClasses] = ToyCurves) -> type[ToyClasses]:
    """Return a class of toy tasks of another kind."""
    return type(name, (parent,), {"__doc__": "Curves of another kind.", "__module__": __name__, "kind": kind})


def _each(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).square().mean(-1)


def _by_value(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).square().mean() if bool(prediction[0, 0] > y[0, 0]) else (prediction - y).abs().mean()


def _rounded(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction.round() - y).square().mean()


def _root(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - prediction.detach() + y - y).abs().sqrt().mean()


def _negative(prediction: Tensor, y: Tensor) -> Tensor:
    return -REGRESSION.score(prediction, y)


def _all_chances(task: Task, spec: TaskSpec) -> Tensor:
    return task.query.y.square()


class Halves(ToyLabels):
    """Labels of one half."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        return Task(*(Examples(part.x, part.y / 2) for part in super().episode(spec, key)[:2]))


class Wide(ToyCurves):
    """Has two targets, where its kind has one."""

    kind: ClassVar[TaskKind] = replace(REGRESSION, name="narrow", target_shape=(1,))


class Moody(ToyCurves):
    """Makes a new kind for every spec."""

    def spec(self, split: str, shape: Any) -> TaskSpec:
        kind = TaskKind("regression", lambda p, y: (p - y).square().mean(), REGRESSION.score, REGRESSION.scale)
        return replace(super().spec(split, shape), kind=kind)


def _direction_loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean of 1 - cos of the angle between a predicted direction and that of the target."""
    unit = prediction / (prediction.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return 1 - (unit * torch.cat([y.cos(), y.sin()], -1)).sum(-1).mean()


class Angles(ToyCurves):
    """Directions in the plane: the prediction has two numbers, the target one angle."""

    kind: ClassVar[TaskKind] = TaskKind(
        "angles",
        _direction_loss,
        _direction_loss,
        Scale("direction error", higher_is_better=False, minimum=0.0),
        target_shape=(1,),
    )

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        return Task(*(Examples(part.x, part.y[:, :1]) for part in super().episode(spec, key)[:2]))


_OWN = replace(REGRESSION, name="own")
# (check that must fail, kind of the plugin, plugin class)
FAULTS: list[tuple[str, str, type[Any]]] = [
    ("spec", "dataset", Halves),
    ("spec", "dataset", Wide),
    ("spec", "dataset", Moody),
    ("contract", "dataset", _with_kind("Impostor", replace(MULTI_LABEL, name="regression"))),
    ("contract", "dataset", _with_kind("Typo", "regresion")),  # type: ignore[arg-type]
    ("task-kind", "dataset", _with_kind("NotReduced", replace(_OWN, loss=_each))),
    ("task-kind", "dataset", _with_kind("Branching", replace(_OWN, score=_by_value))),
    ("task-kind", "dataset", _with_kind("Flat", replace(_OWN, loss=_rounded))),
    ("task-kind", "dataset", _with_kind("Kinked", replace(_OWN, loss=_root))),
    ("task-kind", "dataset", _with_kind("Negative", replace(_OWN, score=_negative))),
    ("task-kind", "dataset", _with_kind("NoShare", replace(_OWN, scale=replace(_OWN.scale, percent=True)))),
    ("task-kind", "dataset", _with_kind("ManyChances", replace(_OWN, chance=_all_chances))),
]
RIGHT: list[tuple[str, type[Any]]] = [
    ("dataset", ToyLabels),
    ("dataset", ToyWorlds),
    ("dataset", Angles),
    ("dataset", _with_kind("Own", _OWN)),
    ("dataset", _with_kind("Named", "regression")),  # type: ignore[arg-type]
]
