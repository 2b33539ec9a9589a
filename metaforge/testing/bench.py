"""The test bench of a subject: a learner that is or contains the subject, with values and toy tasks to run it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import add_params, one_task, split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION, MULTI_LABEL, task_kind
from metaforge.authoring.network import build_backbone
from metaforge.authoring.progress import with_progress
from metaforge.authoring.protocols import (
    Adapter,
    Dataset,
    Fast,
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
from metaforge.data.root import data_root
from metaforge.engine.batch import MetaStep, meta_gradients, prepare_tasks
from metaforge.engine.predictions import evaluation_keys
from metaforge.testing.subject import Subject
from metaforge.testing.toy import TOYS, ToyDescent, ToyLearner, ToyNet, ToyReader, ToyTasksOptions

# Standard deviation of the noise that is added to initial parameters. At initial values of 0 and 1 (biases, scales of
# norm layers) some mistakes have no effect.
PERTURBATION = 0.01
# Shapes of an input, tried in this order for a subject that does not set `x_shape`.
INPUT_SHAPES = ((6,), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 84, 84), (4, 3))
TASK_SHAPES: Mapping[str, TaskShape] = {
    name: TaskShape(3, 2, 3) if toy.kind.classes else TaskShape(1, 6, 6) for name, toy in TOYS.items()
}


class Bench(NamedTuple):
    """A learner built for the tasks of a data set, with the regularizers that contribute terms to the outer loss."""

    learner: Learner
    spec: TaskSpec
    dataset: Dataset
    regularizers: tuple[Regularizer, ...] = ()

    def values(self, seed: int = 0, *, perturbed: bool = True) -> Params:
        """Return initial values in float64, with the progress of a training that is half done.

        `perturbed` adds noise to the parameters (see `PERTURBATION`).
        """
        key = make_key(seed, "values")
        values = {name: value.double() for name, value in self.learner.init(key).items()}
        params, state = split_state(values)
        if perturbed:
            params = {n: v + PERTURBATION * normal(fold_in(key, n), v.shape, v.dtype) for n, v in params.items()}
        return with_progress(params | state, step=50, share=0.5)

    def tasks(self, count: int, *, split: str = "train", dtype: torch.dtype = torch.float64) -> Task:
        """Return toy tasks `[count, ...]`."""
        batch = self.dataset.sample(split, self.spec.shape, 0, count, seed=0)
        return prepare_tasks(batch, torch.device("cpu"), dtype)

    def task(self, index: int = 0) -> Task:
        """Return the toy task with this number, without a task dimension."""
        return one_task(self.tasks(index + 1), index)

    def predict(self, values: Params, task: Task, **options: Any) -> Tensor:
        """Return predictions `[n, outputs]` for the query set as in evaluation; `options` are passed to `adapt`."""
        return self.answers(values, self.adapt(values, task, **options), task.query.x)

    def adapt(self, values: Params, task: Task, **options: Any) -> Fast:
        """Return what the learner learns from the support set as in evaluation; `options` are passed to `adapt`."""
        return self.learner.adapt(values, task.support, key=self._keys()[0], **options)

    def answers(self, values: Params, fast: Fast, x: Tensor) -> Tensor:
        """Return predictions `[n, outputs]` for inputs `[n, *x_shape]` as in evaluation."""
        return self.learner.predict(values, fast, x, key=self._keys()[1])

    def _keys(self) -> tuple[Tensor | None, Tensor | None]:
        return evaluation_keys(self.spec.kind, task_keys(1)[0])

    def step(self, values: Params, tasks: Task, **options: Any) -> MetaStep:
        """Return losses, gradients and state of an outer step; `options` are passed to `meta_gradients`."""
        return meta_gradients(
            self.learner, values, tasks, task_keys(len(tasks.support.x)), regularizers=self.regularizers, **options
        )

    def with_updated_state(self, values: Params) -> Params:
        """Return the values with their state entries as after one outer step, such as updated running statistics."""
        return add_params(values, self.step(values, self.tasks(2)).state)


def task_keys(count: int) -> Tensor:
    """Return one key per task, `[count]`."""
    return torch.stack([make_key(7, "task", i) for i in range(count)])


def learner_tags(subject: Subject) -> Tags:
    """Return the tags of the learner that is the subject, with its options, or into which the subject is built.

    If the learner cannot be built, these are the tags of its class: a check then fails with the reason.
    """
    kind = task_kinds(subject)[0]
    for x_shape in INPUT_SHAPES if subject.x_shape is None else [subject.x_shape]:
        try:
            tasks = _toy_tasks(kind, x_shape, TASK_SHAPES[kind]) if kind in TOYS else _own_tasks(subject, kind)
            tags = _build(subject, *tasks, without_regularizer=False).learner.tags
        except KeyboardInterrupt:
            raise
        except BaseException:
            continue
        if isinstance(tags, Tags):
            return tags
    of_class: Tags = (subject.cls if subject.kind == "learner" else ToyLearner).tags
    return of_class


def task_kinds(subject: Subject) -> list[str]:
    """Return the kinds of tasks for a subject by name: all that a learner names, classification for other plugins.

    A learner that solves other kinds of supervised tasks is checked on one that it may not name.
    """
    if subject.kind != "learner":
        return [CLASSIFICATION.name]
    tags: Tags = subject.cls.tags
    return sorted(tags.kinds | ({MULTI_LABEL.name} if tags.other_kinds else set()))


def build_benches(subject: Subject) -> list[Bench]:
    """Return one bench per kind of task."""
    return [build_bench(subject, kind) for kind in task_kinds(subject)]


def build_bench(
    subject: Subject,
    kind: Kind | None = None,
    *,
    ways: int | None = None,
    without_regularizer: bool = False,
    terms: frozenset[str] = frozenset(),
) -> Bench:
    """Return a bench for a subject.

    Args:
        subject: The plugin to check.
        kind: Kind of the toy tasks; by default the first that the learner supports.
        ways: Number of classes of a toy task, if it is not the usual one.
        without_regularizer: Whether to leave out a regularizer that is the subject, for comparison.
        terms: The terms that a regularizer beside the subject reads; by default there is no such regularizer.

    Raises:
        AssertionError: The subject has no `x_shape`, and a learner or backbone fails for all input shapes tried.
    """
    name = task_kinds(subject)[0] if kind is None else kind if isinstance(kind, str) else kind.name
    if name not in TOYS:
        return _build(subject, *_own_tasks(subject, name), without_regularizer, terms)
    shape = TASK_SHAPES[name] if ways is None else TASK_SHAPES[name]._replace(ways=ways)
    if subject.x_shape is not None or subject.kind not in ("learner", "backbone"):
        tasks = _toy_tasks(name, subject.x_shape or INPUT_SHAPES[0], shape)
        return _build(subject, *tasks, without_regularizer, terms)
    errors, last = [], None
    for x_shape in INPUT_SHAPES:
        try:
            trial = _build(subject, *_toy_tasks(name, x_shape, shape), without_regularizer, terms)
            trial.predict(trial.values(), trial.task())
        except Exception as error:
            last = error
            errors.append(f"{list(x_shape)}: {type(error).__name__}: {str(error).strip().splitlines()[0:1]}")
        else:
            # A new instance: what the trial has stored on its instance could hide that a loaded learner fails.
            return _build(subject, trial.dataset, trial.spec, without_regularizer, terms)
    raise AssertionError(
        f"{subject.label} makes no predictions for any of the input shapes tried ({'; '.join(errors)}); correct these"
        " errors, or set the shape that it accepts with Subject(..., x_shape=...)"
    ) from last


def _toy_tasks(kind: str, x_shape: tuple[int, ...], shape: TaskShape) -> tuple[Dataset, TaskSpec]:
    """Return the toy tasks of a kind with these inputs, and their spec."""
    dataset = TOYS[kind](ToyTasksOptions(x_shape=x_shape), root=Path())
    return dataset, dataset.spec("train", shape)


def _own_tasks(subject: Subject, kind: str) -> tuple[Dataset, TaskSpec]:
    """Return the tasks of an installed data set of a kind that the kit has no toy tasks of, and their spec."""
    for entry in subject.registry.entries("dataset"):
        if entry.state == "ready":
            cls = subject.registry.load("dataset", entry.qualified)
            if task_kind(cls.kind).name == kind:
                dataset: Dataset = cls(cls.Config.model_validate({}), root=data_root())
                shape = TaskShape(3, 2, 3) if task_kind(cls.kind).classes else TaskShape(1, 6, 6)
                return dataset, dataset.spec("train", shape)
    raise AssertionError(
        f"{subject.label} solves {kind} tasks, but no data set of this kind is installed; install one, or pass"
        " Subject.of(..., registry) with a registry that has one"
    )


def rebuilt(subject: Subject, dataset: Dataset, spec: TaskSpec) -> Bench:
    """Return a bench for a subject that is built for other tasks."""
    return _build(subject, dataset, spec, without_regularizer=False)


def _build(
    subject: Subject,
    dataset: Dataset,
    spec: TaskSpec,
    without_regularizer: bool,
    terms: frozenset[str] = frozenset(),
    frozen: Sequence[str] = (),
) -> Bench:
    backbone = subject.build() if subject.kind == "backbone" else ToyNet(Options())
    chain: Mapping[str, GradientTransform] = {"toy": ToyDescent(Options())}
    regularizers: dict[str, Regularizer] = {"reader": ToyReader(Options(), terms)} if terms else {}
    if subject.kind == "adapter":
        chain = {subject.name: subject.build()}
    if subject.kind == "regularizer" and not without_regularizer:
        regularizers[subject.name] = subject.build()
    cls = subject.cls if subject.kind == "learner" else ToyLearner
    needs = cls.tags.needs
    parts = Parts(
        spec,
        partial(build_backbone, backbone, spec) if "backbone" in needs else None,
        Chain(chain) if "adapter" in needs else None,
        regularizers,
        frozen,
    )
    config = subject.config if subject.kind == "learner" else ToyLearner.Config.model_validate({})
    return Bench(cls(config, parts), spec, dataset, tuple(regularizers.values()))


def build_frozen_bench(subject: Subject, bench: Bench, frozen: Sequence[str]) -> Bench:
    """Return a bench for a subject and the tasks of another bench, of which some values are frozen."""
    return _build(subject, bench.dataset, bench.spec, False, frozen=frozen)


def build_chain_bench(subject: Subject, *, first: bool) -> Bench:
    """Return a bench of the toy learner with an adapter in a chain, before (`first`) or after gradient descent."""
    pair: list[tuple[str, Adapter]] = [(subject.name, subject.build()), ("toy", ToyDescent(Options()))]
    return _adapting(subject, dict(pair if first else reversed(pair)))


def build_adjoint_bench(subject: Subject, adjoint: str) -> Bench:
    """Return a bench of the toy learner with an adapter and three inner steps, differentiated by an adjoint."""
    return _adapting(subject, {subject.name: subject.build()}, adjoint=adjoint, steps=3)


def _adapting(subject: Subject, chain: Mapping[str, GradientTransform], **options: Any) -> Bench:
    """Return a bench of the toy learner with these adapters and options."""
    kind, backbone = CLASSIFICATION.name, ToyNet(Options())
    dataset, spec = _toy_tasks(kind, subject.x_shape or INPUT_SHAPES[0], TASK_SHAPES[kind])
    parts = Parts(spec, partial(build_backbone, backbone, spec), Chain(chain))
    return Bench(ToyLearner(ToyLearner.Config.model_validate(options), parts), spec, dataset)


def difference(first: Any, second: Any, tolerance: float = 0.0) -> str:
    """Return a description of the first difference between two nested structures of tensors, or an empty string.

    Args:
        first: Any pytree of tensors and other values.
        second: Another one.
        tolerance: Absolute and relative tolerance for the values of tensors. Shapes and dtypes must be equal.
    """
    left, right = (
        {keystr(path) or "the tensor": leaf for path, leaf in tree_flatten_with_path(tree)[0]}
        for tree in (first, second)
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
            largest = float((a.double() - b.double()).detach().abs().max())
            return f"{name} differs by up to {largest:.3g}"
    return ""
