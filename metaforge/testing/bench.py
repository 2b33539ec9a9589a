"""A subject at work: the learner that it is, or that is built around it, with values and tasks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from metaforge.authoring.functional import add_params, one_task, split_state
from metaforge.authoring.inner_loop import Chain
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.protocols import (
    Adapter,
    GradientTransform,
    Kind,
    Learner,
    Options,
    Params,
    Parts,
    Regularizer,
    Tags,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.engine.batch import MetaStep, meta_gradients, prepare
from metaforge.testing.subject import Subject
from metaforge.testing.toy import OUTPUTS, ToyClasses, ToyCurves, ToyDescent, ToyLearner, ToyNet, ToyTasksOptions

# Tried in this order where a subject does not say what inputs it takes.
SHIFT = 0.01
INPUTS = ((6,), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 84, 84))
SHAPES: dict[Kind, TaskShape] = {"classification": TaskShape(3, 2, 3), "regression": TaskShape(1, 6, 6)}


class Bench(NamedTuple):
    """A learner built for toy tasks of a spec, with the regularizers whose terms the outer loss has."""

    learner: Learner
    spec: TaskSpec
    regularizers: tuple[Regularizer, ...] = ()

    def values(self, seed: int = 0, *, moved: bool = True) -> Params:
        """Return initial values in float64; `moved` off the ones and zeros at which many things do not matter."""
        key = make_key(seed, "values")
        values = {name: value.double() for name, value in self.learner.init(key).items()}
        params, state = split_state(values)
        if moved:
            params = {n: v + SHIFT * normal(fold_in(key, n), v.shape, v.dtype) for n, v in params.items()}
        return params | state

    def tasks(self, count: int, *, split: str = "train", dtype: torch.dtype = torch.float64) -> Task:
        """Return toy tasks `[count, ...]`."""
        dataset = (ToyCurves if self.spec.kind == "regression" else ToyClasses)(
            ToyTasksOptions(x_shape=self.spec.x_shape), root=Path()
        )
        batch = dataset.sample(split, self.spec.shape, 0, count, seed=0)
        return prepare(batch, torch.device("cpu"), dtype)

    def task(self, index: int = 0) -> Task:
        """Return one toy task."""
        return one_task(self.tasks(index + 1), index)

    def predict(self, values: Params, task: Task, **adapting: Any) -> Tensor:
        """Return the predictions `[n, outputs]` of a task's queries, as in evaluation."""
        return self.learner.predict(values, self.learner.adapt(values, task.support, **adapting), task.query.x)

    def step(self, values: Params, tasks: Task, **how: Any) -> MetaStep:
        """Return the meta-gradient step of a batch of tasks."""
        return meta_gradients(
            self.learner, values, tasks, keys(len(tasks.support.x)), regularizers=self.regularizers, **how
        )

    def advanced(self, values: Params) -> Params:
        """Return the values with their state after one meta-step: running statistics that have moved."""
        return add_params(values, self.step(values, self.tasks(2)).state)


def keys(count: int) -> Tensor:
    """Return one key for each task `[count]`."""
    return torch.stack([make_key(7, "task", i) for i in range(count)])


def tags(subject: Subject) -> Tags:
    """Return the tags of the learner that a subject is, or is built into."""
    found: Tags = (subject.cls if subject.kind == "learner" else ToyLearner).tags
    return found


def kinds(subject: Subject) -> list[Kind]:
    """Return the kinds of toy tasks on which a subject is tried: all that a learner solves, one for all others."""
    return sorted(tags(subject).kinds) if subject.kind == "learner" else ["classification"]


def benches(subject: Subject) -> list[Bench]:
    """Return one bench for each kind of task that a subject is tried on."""
    return [bench(subject, kind) for kind in kinds(subject)]


def bench(subject: Subject, kind: Kind | None = None, *, ways: int | None = None, bare: bool = False) -> Bench:
    """Return the learner that a subject is, or that is built around it; `bare` leaves an added regularizer out.

    Raises `AssertionError` where it can be built for none of the inputs tried.
    """
    kind = kind or kinds(subject)[0]
    shape = SHAPES[kind] if ways is None else SHAPES[kind]._replace(ways=ways)
    if subject.x_shape is not None or subject.kind not in ("learner", "backbone"):
        return _built(subject, _spec(kind, subject.x_shape or INPUTS[0], shape), bare)
    said = []
    for x_shape in INPUTS:
        try:
            tried = _built(subject, _spec(kind, x_shape, shape), bare)
            tried.predict(tried.values(), tried.task())
        except Exception as error:
            said.append(f"{list(x_shape)}: {type(error).__name__}: {str(error).strip().splitlines()[0:1]}")
        else:
            # A new one: what the trial left on an instance must not hide what a loaded learner lacks.
            return _built(subject, tried.spec, bare)
    raise AssertionError(
        f"{subject.label} predicts for none of the inputs tried ({'; '.join(said)}); mend what it raised, or say what"
        " it takes with Subject(..., x_shape=...)"
    )


def _spec(kind: Kind, x_shape: tuple[int, ...], shape: TaskShape) -> TaskSpec:
    return TaskSpec(kind, x_shape, OUTPUTS if kind == "regression" else shape.ways, shape)


def _built(subject: Subject, spec: TaskSpec, bare: bool) -> Bench:
    body = subject.built() if subject.kind == "backbone" else ToyNet(Options())
    chain: Mapping[str, GradientTransform] = {"toy": ToyDescent(Options())}
    regularizers: dict[str, Regularizer] = {}
    if subject.kind == "adapter":
        chain = {subject.name: subject.built()}
    if subject.kind == "regularizer" and not bare:
        regularizers = {subject.name: subject.built()}
    cls = subject.cls if subject.kind == "learner" else ToyLearner
    needs = cls.tags.needs
    parts = Parts(
        spec,
        cast(Callable[[], nn.Module], lambda: body.build(spec)) if "backbone" in needs else None,
        Chain(chain) if "adapter" in needs else None,
        regularizers,
    )
    config = subject.config if subject.kind == "learner" else ToyLearner.Config.model_validate({})
    return Bench(cls(config, parts), spec, tuple(regularizers.values()))


def chained(subject: Subject, *, first: bool) -> Bench:
    """Return the toy learner with an adapter before or after plain descent in one chain."""
    spec = _spec("classification", subject.x_shape or INPUTS[0], SHAPES["classification"])
    pair: list[tuple[str, Adapter]] = [(subject.name, subject.built()), ("toy", ToyDescent(Options()))]
    body = ToyNet(Options())
    parts = Parts(spec, lambda: body.build(spec), Chain(dict(pair if first else reversed(pair))))
    return Bench(ToyLearner(ToyLearner.Config.model_validate({}), parts), spec)


def difference(one: Any, two: Any, tolerance: float = 0.0) -> str:
    """Return what differs between two nests of tensors, in words; an empty string if nothing does."""
    left, right = (
        {keystr(path) or "the tensor": leaf for path, leaf in tree_flatten_with_path(nest)[0]} for nest in (one, two)
    )
    if left.keys() != right.keys():
        return f"only one side has {', '.join(sorted(left.keys() ^ right.keys()))}"
    for name, a in left.items():
        b = right[name]
        if not isinstance(a, Tensor):
            if a != b:
                return f"{name}: {a!r} and {b!r}"
        elif a.shape != b.shape or a.dtype != b.dtype:
            return f"{name}: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        elif not torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            worst = float((a.double() - b.double()).detach().abs().max())
            return f"{name} differs by up to {worst:.3g}"
    return ""
