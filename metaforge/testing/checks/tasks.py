"""Checks of what a learner's tags say of its tasks: whether it reads class numbers and takes unequal shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.protocols import Task, TaskShape
from metaforge.engine.batch import score_tasks
from metaforge.testing.bench import build_bench, difference, learner_tags, rebuilt, task_keys
from metaforge.testing.check import check
from metaforge.testing.checks.gradients import assert_exact_gradient, assert_plans_agree
from metaforge.testing.checks.learners import KEY
from metaforge.testing.subject import Subject
from metaforge.testing.toy import CLASSES, ToyClasses, ToyTasksOptions, stack_tasks

# The shots of the three classes of toy tasks: no total is a multiple of three.
SHOTS = ((1, 3, 1), (2, 4, 1))


def _no_classes(subject: Subject) -> str:
    return "" if "classification" in learner_tags(subject).kinds else "tags.kinds has no classification"


@check("learner", name="uses-classes", skip_reason=_no_classes)
def uses_classes(subject: Subject) -> None:
    """The tag `uses_classes` is True if and only if the loss depends on the numbers of the task's classes."""
    bench, tag = build_bench(subject, "classification"), learner_tags(subject).uses_classes
    values, task = bench.values(), bench.task()
    numbers = torch.as_tensor(task.classes)
    if not tag:
        # A data set need not number its classes.
        loss = bench.learner.loss(values, task._replace(classes=()), KEY)[0]
        mismatch = difference(bench.learner.loss(values, task, KEY)[0], loss)
        assert not mismatch, f"tags.uses_classes is False, but the loss depends on Task.classes: {mismatch}; set it"
        return
    loss, other = (bench.learner.loss(values, task._replace(classes=numbers - shift), KEY)[0] for shift in (0, 7))
    assert difference(loss, other), (
        "tags.uses_classes is True, but the loss does not depend on Task.classes; set uses_classes=False"
    )


def _equal_shots_only(subject: Subject) -> str:
    return "" if learner_tags(subject).varied_shots else "tags.varied_shots is False: all classes have equal shots"


@check("learner", name="varied-shots", skip_reason=_equal_shots_only)
def varied_shots(subject: Subject) -> None:
    """With the tag `varied_shots`, tasks of unequal shots have right predictions, plans, gradients and metrics."""
    fixed, names = build_bench(subject, "classification"), []
    for shots in SHOTS:
        toys = _UnequalClasses(fixed.spec.x_shape, shots)
        bench = rebuilt(subject, toys, replace(fixed.spec, shape=TaskShape(len(shots), 0, 0)))
        values, tasks = bench.values(), bench.tasks(2)
        mismatch = difference(fixed.values(), values)
        assert not mismatch, (
            f"the values of init depend on the number of shots: {mismatch}; make them independent of it"
        )
        scored = score_tasks(bench.learner, values, tasks, task_keys(2), kind=bench.spec.kind)
        expected = (2, len(tasks.query.y[0]), bench.spec.outputs)
        found = scored.predictions.shape if bool(scored.predictions.isfinite().all()) else "numbers that are not finite"
        assert found == expected, (
            f"with {shots} shots of the classes, the predictions are {found}, not finite of the shape {list(expected)};"
            " count the examples of each class by the labels"
        )
        assert_plans_agree(bench)
        tags = bench.learner.tags
        if tags.exact_meta_gradient and not tags.converges_at and split_state(values)[0]:
            assert_exact_gradient(bench)
        names.append(sorted(bench.learner.loss(values, one_task(tasks), KEY)[1].metrics))
    assert names[0] == names[1], (
        f"tasks of other shots have other metrics: {names[0]} and {names[1]}; the metrics of a batch must have one set"
        " of names"
    )


class _UnequalClasses(ToyClasses):
    """Toy tasks whose classes have given numbers of support examples, and two queries each.

    Args:
        x_shape: Shape of one input.
        shots: The number of support examples of each class.
    """

    def __init__(self, x_shape: tuple[int, ...], shots: Sequence[int]) -> None:
        super().__init__(ToyTasksOptions(x_shape=x_shape), root=Path())
        self.shots = shots

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task of these shots, whatever the shape."""
        numbers = [CLASSES - 1 - label for label in range(len(self.shots))]
        return stack_tasks(
            [self.draw(split, numbers, self.shots, 2, number, seed=seed) for number in range(first, first + count)]
        )
