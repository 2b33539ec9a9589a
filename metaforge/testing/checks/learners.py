"""Checks of a learner's values, predictions and losses.

Most of them also run on adapters, regularizers and backbones, which are built into the toy learner for this purpose.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key, permutation
from metaforge.authoring.progress import is_progress
from metaforge.authoring.protocols import STATE, Params, Tags, Task
from metaforge.runs import checkpoint
from metaforge.testing.bench import (
    Bench,
    build_bench,
    build_benches,
    build_frozen_bench,
    difference,
    learner_tags,
    task_kinds,
)
from metaforge.testing.check import check
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject
from metaforge.testing.toy import TOYS

# The toy learner is built around plugins of the last three kinds.
ALL = ("learner", "adapter", "regularizer", "backbone")
KEY = make_key(3, "noise")


@check(*ALL)
def init(subject: Subject) -> None:
    """`init` returns a flat dictionary of finite floating-point tensors, and draws random numbers from its key only."""
    for bench in build_benches(subject):
        with assert_generators_unchanged(f"init of {subject.label}"):
            values = bench.learner.init(make_key(0))
        for name, value in values.items():
            valid = isinstance(value, Tensor) and value.is_floating_point() and bool(value.isfinite().all())
            assert isinstance(name, str), f"init returns an entry with the name {name!r}; names must be strings"
            assert valid, f"init returns {name!r} as {_description(value)}; it must be a tensor of finite floats"
        new_learner = build_bench(subject, bench.spec.kind).learner
        for other in (bench.learner.init(make_key(0)), new_learner.init(make_key(0))):
            mismatch = difference(values, other)
            assert not mismatch, (
                f"two calls of init with the same key return different values: {mismatch}; draw from the key only"
            )


@check(*ALL)
def shapes(subject: Subject) -> None:
    """Predictions are `[n, outputs]`, losses and metrics are scalars, and dtypes are those of the inputs."""
    # With another number of ways too: the number of outputs must not be a constant of the learner.
    more_ways = [build_bench(subject, kind, ways=4) for kind in _kinds_with_ways(subject)]
    for bench in (*build_benches(subject), *more_ways):
        for dtype in (torch.float32, torch.float64):
            values = {name: value.to(dtype) for name, value in bench.values().items()}
            task = tree_map(lambda x: x[0], bench.tasks(1, dtype=dtype))
            prediction = bench.predict(values, task)
            expected = (len(task.query.x), bench.spec.outputs)
            assert prediction.shape == expected, (
                f"predict returns the shape {list(prediction.shape)}; it must be [n, outputs], here {list(expected)}"
            )
            assert prediction.dtype == dtype, (
                f"predict returns {prediction.dtype} for {dtype} inputs; it must keep the dtype"
            )
            if not bench.spec.kind.needs_key:
                found = bench.learner.deviation(values, bench.learner.adapt(values, task.support), task.query.x)
                assert found is None or (found.shape == expected and bool((found > 0).all())), (
                    f"deviation must return positive numbers of shape {list(expected)}, or None"
                )
            loss, aux = bench.learner.loss(values, task, KEY)
            scalars = {"the loss": loss, **aux.metrics, **bench.learner.measure(values, task, KEY)}
            for name, scalar in scalars.items():
                assert scalar.shape == (), f"{name} has the shape {list(scalar.shape)}; it must be a scalar per task"
            assert loss.dtype == dtype, f"the loss is {loss.dtype} for {dtype} inputs; it must keep the dtype"
            _check_state(values, aux.state, dtype)


def _kinds_with_ways(subject: Subject) -> list[str]:
    """Return the kinds of toy tasks for a subject that have classes, of which there can be any number."""
    return [kind for kind in task_kinds(subject) if kind in TOYS and TOYS[kind].kind.classes]


def _check_state(values: Params, state: Params, dtype: torch.dtype) -> None:
    """Check that the changes in `Aux.state` belong to state entries of the values and fit their shapes."""
    entries = {name: value for name, value in values.items() if name.startswith(STATE)}
    for name, change in state.items():
        assert name in entries, (
            f"Aux.state has {name!r}, which is not a state entry of the values; let init return it, under a name that"
            f" begins with {STATE!r}"
        )
        assert not is_progress(name), f"Aux.state has {name!r}, which only the run sets; leave it out"
        valid = change.shape == entries[name].shape and change.dtype == dtype
        assert valid, (
            f"Aux.state has {name!r} as {_description(change)}; it must be {dtype} of shape {list(entries[name].shape)}"
        )


@check(*ALL)
def pure(subject: Subject) -> None:
    """Loss, metrics and predictions depend on values, task and key only, and inputs are not modified."""
    for bench in build_benches(subject):
        values, tasks = bench.values(), [bench.task(0), bench.task(1)]
        copies = tree_map(torch.clone, (values, tasks))
        with assert_generators_unchanged(f"loss, adapt or predict of {subject.label}"):
            first = _all_results(bench, values, tasks[0])
            _all_results(bench, values, tasks[1])
            again = _all_results(bench, values, tasks[0])
        mismatch = difference(copies, (values, tasks))
        assert not mismatch, f"values or tasks were modified in place: {mismatch}; work on copies"
        marked = [n for n, v in values.items() if v.requires_grad or v.grad is not None]
        assert not marked, (
            f"requires_grad or .grad was set on {marked[:3]}; use torch.func.grad, which leaves its inputs unchanged"
        )
        new_bench = _all_results(build_bench(subject, bench.spec.kind), values, tasks[0])
        for other, when in ((again, "after a call with another task"), (new_bench, "from a new instance")):
            mismatch = difference(first, other)
            assert not mismatch, (
                f"the same call gives another result {when}: {mismatch}; store nothing on the instance that changes"
                " results"
            )


def _all_results(bench: Bench, values: Params, task: Task) -> tuple[Tensor, ...]:
    """Return everything that a learner computes for a task."""
    loss, aux = bench.learner.loss(values, task, KEY)
    measured = bench.learner.measure(values, task, KEY)
    return (
        loss,
        *aux.metrics.values(),
        *aux.state.values(),
        *aux.terms.values(),
        *measured.values(),
        bench.predict(values, task),
    )


@check("learner")
def frozen(subject: Subject) -> None:
    """A value that is frozen is not adapted to a task."""
    for bench in build_benches(subject):
        values, support = bench.values(), bench.task().support
        fast = bench.learner.adapt(values, support)
        adapted = [name for name in split_state(values)[0] if isinstance(fast, dict) and name in fast]
        # One at a time, because a learner may refuse to be built with nothing left to adapt.
        for name in adapted if len(adapted) > 1 else []:
            after = build_frozen_bench(subject, bench, [name]).learner.adapt(values, support)
            assert name not in after or torch.equal(after[name], values[name]), (
                f"{name!r} is adapted although it is frozen; leave out what `matching(names, parts.frozen)` returns"
            )


@check(*ALL)
def no_leak(subject: Subject) -> None:
    """Query labels never change a prediction, not even after `loss` and `measure` have received them."""
    for bench in build_benches(subject):
        values, task = bench.values(), bench.task()
        before = bench.predict(values, task)
        for labels in (task.query.y, task.query.y.flip(0)):
            labelled = task._replace(query=task.query._replace(y=labels))
            bench.learner.loss(values, labelled, KEY)
            bench.learner.measure(values, labelled, KEY)
            mismatch = difference(before, bench.predict(values, labelled))
            assert not mismatch, (
                f"predictions change after loss and measure have received query labels: {mismatch}; predict from the"
                " support set and x only"
            )


@check("learner", "backbone")
def transductive(subject: Subject) -> None:
    """`transductive` is True if and only if the prediction for a query depends on the other queries."""
    for bench in build_benches(subject):
        if not bench.spec.kind.supervised:
            continue  # The parameters of one environment tell a learner nothing about another one.
        values, task, other = bench.with_updated_state(bench.values()), bench.task(0), bench.task(1)
        fast = bench.adapt(values, task)
        mixed = torch.cat([task.query.x[:1], other.query.x[1:]])
        original, exchanged = (bench.answers(values, fast, x)[0] for x in (task.query.x, mixed))
        depends = bool(difference(original, exchanged, 1e-9))
        assert depends == bench.learner.transductive, (
            f"transductive is {bench.learner.transductive}, but the prediction for a query"
            f" {'changes' if depends else 'does not change'} with the other queries; set transductive = {depends}"
        )


@check(*ALL)
def query_order(subject: Subject) -> None:
    """Permuting the queries permutes the predictions and changes nothing else."""
    for bench in build_benches(subject):
        if bench.spec.kind.needs_key:
            continue  # The noise of an environment may differ from one place to the next.
        values, task = bench.values(), bench.task()
        order = permutation(make_key(5, "order"), len(task.query.x))
        fast = bench.adapt(values, task)
        original, permuted = (bench.answers(values, fast, x) for x in (task.query.x, task.query.x[order]))
        mismatch = difference(original[order], permuted, 1e-9)
        assert not mismatch, (
            f"the prediction for a query depends on its position: {mismatch}; treat all queries in the same way"
        )


@check("learner")
def stochastic(subject: Subject) -> None:
    """The tag `stochastic` is True if and only if the loss depends on the key."""
    depends = False
    for bench in build_benches(subject):
        values, task, tag = bench.values(), bench.task(), bench.learner.tags.stochastic
        losses = [bench.learner.loss(values, task, make_key(seed, "noise"))[0] for seed in range(4)]
        depends = depends or any(bool(difference(losses[0], loss, 1e-9)) for loss in losses[1:])
    assert depends == tag, (
        f"tags.stochastic is {tag}, but the loss {'depends' if depends else 'does not depend'} on the key;"
        f" set stochastic={depends}"
    )


@check("learner")
def tags(subject: Subject) -> None:
    """An instance has the tags `kinds` and `needs` of its class, which are read before there is an instance."""
    for bench in build_benches(subject):
        found, of_class = bench.learner.tags, subject.cls.tags
        assert isinstance(found, Tags), f"tags is of type {type(found).__name__}; set it to a metaforge.authoring.Tags"
        for name in ("kinds", "needs"):
            own, expected = (", ".join(sorted(getattr(tags, name))) or "empty" for tags in (found, of_class))
            assert own == expected, (
                f"tags.{name} is {own} with these options, but {expected} in the class; make them equal, since only"
                " other tags may depend on options"
            )


@check("learner")
def steps(subject: Subject) -> None:
    """`adapt` accepts 0 and 2 steps, and the tag `adapts` is True if and only if their predictions differ."""
    for bench in build_benches(subject):
        values, task = bench.values(), bench.task()
        zero, two = (bench.predict(values, task, steps=count) for count in (0, 2))
        assert bool(zero.isfinite().all() & two.isfinite().all()), (
            "predictions after 0 or 2 steps are not finite; they must be finite for any number of steps"
        )
        differ, tag = bool(difference(zero, two, 1e-12)), bench.learner.tags.adapts
        assert differ == tag, (
            f"tags.adapts is {tag}, but the predictions after 0 and 2 steps are {'different' if differ else 'equal'};"
            " either take `steps` steps in adapt and set adapts=True, or ignore `steps` and set adapts=False"
        )


def _cannot_change_ways(subject: Subject) -> str:
    if not _kinds_with_ways(subject):
        return "none of tags.kinds has classes, and only classes are ways"
    return "tags.fixed_ways is True: it has one output per class" if learner_tags(subject).fixed_ways else ""


@check("learner", skip_reason=_cannot_change_ways)
def ways(subject: Subject) -> None:
    """A learner whose tag `fixed_ways` is False can use values of 3-way tasks for 5-way tasks."""
    small, large = (build_bench(subject, _kinds_with_ways(subject)[0], ways=ways) for ways in (3, 5))
    values, task = small.values(), large.task()
    mismatch = difference(values, large.values())
    assert not mismatch, f"the values of init depend on the number of ways: {mismatch}; set fixed_ways=True"
    prediction, expected = large.predict(values, task), (large.spec.shape.queries * 5, 5)
    assert prediction.shape == expected, (
        f"for 5 ways predict returns shape {list(prediction.shape)}; return {list(expected)}, or set fixed_ways=True"
    )
    large.learner.loss(values, task, KEY)


@check(*ALL, name="checkpoint")
def saved(subject: Subject) -> None:
    """A new instance with values from a checkpoint gives bitwise equal predictions."""
    for bench in build_benches(subject):
        values = {name: value.float() for name, value in bench.values().items()}
        task = tree_map(lambda x: x[0], bench.tasks(1, dtype=torch.float32))
        before = bench.predict(values, task)
        loaded = _save_and_load(values)
        mismatch = difference(values, loaded)
        assert not mismatch, f"values change when they are saved and loaded: {mismatch}; use ordinary dense tensors"
        after = build_bench(subject, bench.spec.kind).predict(loaded, task)
        mismatch = difference(before, after)
        assert not mismatch, (
            f"a new instance with the loaded values gives other predictions: {mismatch}; keep everything that is"
            " learned in the values"
        )


def _save_and_load(values: Params) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.load(checkpoint.save(Path(folder), 0, values, {}, {})).values


def _description(value: object) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
