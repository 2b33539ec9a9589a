"""What every learner must do, and every other plugin where the toy learner is built around it: values and answers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.keys import make_key, permutation
from metaforge.authoring.protocols import STATE, Params, Task
from metaforge.runs import checkpoint
from metaforge.testing.bench import SHAPES, Bench, bench, benches, difference, tags
from metaforge.testing.check import check
from metaforge.testing.global_state import untouched_generators
from metaforge.testing.subject import Subject

ALL = ("learner", "adapter", "regularizer", "backbone")
KEY = make_key(3, "noise")


@check(*ALL)
def init(subject: Subject) -> None:
    """`init` returns a flat dictionary of finite float tensors, equal for equal keys, and draws from its key alone."""
    for one in benches(subject):
        with untouched_generators(f"init of {subject.label}"):
            values = one.learner.init(make_key(0))
        for name, value in values.items():
            fine = isinstance(value, Tensor) and value.is_floating_point() and bool(value.isfinite().all())
            assert isinstance(name, str), f"init names a value {name!r}; names are strings"
            assert fine, f"init gives {name!r} as {_described(value)}; give a tensor of finite floats"
        again = bench(subject, one.spec.kind).learner
        for other in (one.learner.init(make_key(0)), again.init(make_key(0))):
            assert not (said := difference(values, other)), f"init with the same key differs: {said}; draw from the key"


@check(*ALL)
def shapes(subject: Subject) -> None:
    """Predictions are `[n, outputs]`, loss and figures scalars, new state fits the values, and precision is kept."""
    for one in benches(subject):
        for dtype in (torch.float32, torch.float64):
            values = {name: value.to(dtype) for name, value in one.values().items()}
            task = tree_map(lambda x: x[0], one.tasks(1, dtype=dtype))
            prediction = one.predict(values, task)
            wanted = (len(task.query.x), one.spec.outputs)
            assert prediction.shape == wanted, f"predict gives {list(prediction.shape)}; give {list(wanted)}"
            assert prediction.dtype == dtype, f"predict gives {prediction.dtype} of {dtype} inputs; keep the type"
            loss, aux = one.learner.loss(values, task, KEY)
            figures = {"the loss": loss, **aux.metrics, **one.learner.measure(values, task, KEY)}
            for name, figure in figures.items():
                assert figure.shape == (), f"{name} has the shape {list(figure.shape)}; give a scalar for each task"
            assert loss.dtype == dtype, f"the loss is {loss.dtype} of {dtype} inputs; keep the type"
            _check_state(values, aux.state, dtype)


def _check_state(values: Params, state: Params, dtype: torch.dtype) -> None:
    known = {name: value for name, value in values.items() if name.startswith(STATE)}
    for name, change in state.items():
        assert name in known, f"Aux.state has {name!r}, which init does not give; name an entry that begins {STATE!r}"
        fits = change.shape == known[name].shape and change.dtype == dtype
        assert fits, f"Aux.state has {name!r} as {_described(change)}; give {dtype} of shape {list(known[name].shape)}"


@check(*ALL)
def pure(subject: Subject) -> None:
    """An answer depends on values, task and key alone: nothing is changed, kept, or drawn from elsewhere."""
    for one in benches(subject):
        values, tasks = one.values(), [one.task(0), one.task(1)]
        copies = tree_map(torch.clone, (values, tasks))
        with untouched_generators(f"loss, adapt or predict of {subject.label}"):
            first = _answers(one, values, tasks[0])
            _answers(one, values, tasks[1])
            again = _answers(one, values, tasks[0])
        assert not (said := difference(copies, (values, tasks))), f"the inputs were changed: {said}; work on copies"
        marked = [n for n, v in values.items() if v.requires_grad or v.grad is not None]
        assert not marked, f"gradients were left on {marked[:3]}; use torch.func.grad, which leaves none"
        fresh = _answers(bench(subject, one.spec.kind), values, tasks[0])
        for other, when in ((again, "after another task"), (fresh, "from a new instance")):
            said = difference(first, other)
            assert not said, f"the same question has another answer {when}: {said}; keep nothing on the instance"


def _answers(one: Bench, values: Params, task: Task) -> tuple[Tensor, ...]:
    loss, aux = one.learner.loss(values, task, KEY)
    figures = one.learner.measure(values, task, KEY)
    return loss, *aux.metrics.values(), *aux.state.values(), *figures.values(), one.predict(values, task)


@check(*ALL)
def no_leak(subject: Subject) -> None:
    """Query labels never change a prediction, not even after `loss` and `measure` have seen them."""
    for one in benches(subject):
        values, task = one.values(), one.task()
        before = one.predict(values, task)
        for turned in (task.query.y, task.query.y.flip(0)):
            shown = task._replace(query=task.query._replace(y=turned))
            one.learner.loss(values, shown, KEY)
            one.learner.measure(values, shown, KEY)
            said = difference(before, one.predict(values, shown))
            assert not said, f"predictions change once query labels were seen: {said}; predict from support and x alone"


@check("learner", "backbone")
def transductive(subject: Subject) -> None:
    """`transductive` is true: a query's prediction moves with the other queries if it says so, and else never."""
    for one in benches(subject):
        values, task, other = one.advanced(one.values()), one.task(0), one.task(1)
        fast = one.learner.adapt(values, task.support)
        mixed = torch.cat([task.query.x[:1], other.query.x[1:]])
        alone, beside = (one.learner.predict(values, fast, x)[0] for x in (task.query.x, mixed))
        moved = bool(difference(alone, beside, 1e-9))
        assert moved == one.learner.transductive, (
            f"transductive is {one.learner.transductive}, but the prediction for a query"
            f" {'moves' if moved else 'does not move'} when the other queries change; say transductive = {moved}"
        )


@check(*ALL)
def query_order(subject: Subject) -> None:
    """Another order of the queries gives the same predictions in that order."""
    for one in benches(subject):
        values, task = one.values(), one.task()
        order = permutation(make_key(5, "order"), len(task.query.x))
        fast = one.learner.adapt(values, task.support)
        straight, turned = (one.learner.predict(values, fast, x) for x in (task.query.x, task.query.x[order]))
        said = difference(straight[order], turned, 1e-9)
        assert not said, f"predictions depend on the queries' order: {said}; treat every query alike"


@check("learner")
def stochastic(subject: Subject) -> None:
    """The tag `stochastic` is true: another key gives another loss if it is set, and else never."""
    moved = False
    for one in benches(subject):
        values, task = one.values(), one.task()
        losses = [one.learner.loss(values, task, make_key(seed, "noise"))[0] for seed in range(4)]
        moved = moved or any(bool(difference(losses[0], loss, 1e-9)) for loss in losses[1:])
    tag = tags(subject).stochastic
    assert moved == tag, (
        f"tags.stochastic is {tag}, but the key {'changes' if moved else 'never changes'} the loss;"
        f" say stochastic={moved}"
    )


@check("learner")
def steps(subject: Subject) -> None:
    """`adapt` takes 0 and 2 steps; they differ if the tag `adapts` is set, and else not."""
    for one in benches(subject):
        values, task = one.values(), one.task()
        none, two = (one.predict(values, task, steps=count) for count in (0, 2))
        assert bool(none.isfinite().all() & two.isfinite().all()), "predictions after 0 or 2 steps are not finite"
        moved, tag = bool(difference(none, two, 1e-12)), tags(subject).adapts
        assert moved == tag, (
            f"tags.adapts is {tag}, but 0 and 2 steps give {'other' if moved else 'equal'} predictions; heed `steps`"
            " and say adapts=True, or do neither"
        )


def _one_output_per_class(subject: Subject) -> str:
    if "classification" not in tags(subject).kinds:
        return "tags.kinds has no classification, and only its tasks have ways"
    return "tags.fixed_ways says that it has one output per class" if tags(subject).fixed_ways else ""


@check("learner", unless=_one_output_per_class)
def ways(subject: Subject) -> None:
    """Values of a learner of 3 ways serve tasks of 5 ways, unless the tag `fixed_ways` says otherwise."""
    small, large = (bench(subject, "classification", ways=ways) for ways in (3, 5))
    values, task = small.values(), large.task()
    assert not (said := difference(values, large.values())), f"init depends on the ways: {said}; say fixed_ways=True"
    prediction, wanted = large.predict(values, task), (SHAPES["classification"].queries * 5, 5)
    assert prediction.shape == wanted, f"predict gives {list(prediction.shape)} for 5 ways; give {list(wanted)}"
    large.learner.loss(values, task, KEY)


@check(*ALL, name="checkpoint")
def saved(subject: Subject) -> None:
    """Values that were saved and loaded give a new instance equal predictions, to the bit."""
    for one in benches(subject):
        values = {name: value.float() for name, value in one.values().items()}
        task = tree_map(lambda x: x[0], one.tasks(1, dtype=torch.float32))
        before = one.predict(values, task)
        loaded = _saved_and_loaded(values)
        assert not (said := difference(values, loaded)), f"values come back from a checkpoint otherwise: {said}"
        after = bench(subject, one.spec.kind).predict(loaded, task)
        said = difference(before, after)
        assert not said, f"after loading, predictions differ: {said}; keep all that is learned in the values"


def _saved_and_loaded(values: Params) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.load(checkpoint.save(Path(folder), 0, values, {}, {})).values


def _described(value: object) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
