"""What is asked of gradients: equal under every plan, equal to finite differences, and good to learn by."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.losses import criterion
from metaforge.authoring.protocols import Params, Task
from metaforge.engine.batch import score_tasks
from metaforge.engine.plans import choose_plan, fused_norms
from metaforge.testing.bench import Bench, bench, benches, chained, difference, keys, tags
from metaforge.testing.check import check
from metaforge.testing.checks.learners import ALL
from metaforge.testing.smooth import Smooth
from metaforge.testing.subject import Subject

DIRECTIONS = 5


@check(*ALL)
def vectorised(subject: Subject) -> None:
    """Every plan and chunk (a loop, vmap, folded tasks) gives the same gradients, state, figures and predictions."""
    for one in benches(subject):
        values, tasks = one.values(), one.tasks(3)
        reference = one.step(values, tasks)
        # A learner that adapts through torch's own norms cannot take the order of transforms in which they are wrong.
        unsafe = one.learner.tags.adapts and fused_norms(one.learner, values, one_task(tasks), keys(1)[0])
        plans = [("vmap", None), ("vmap", 2), *([] if unsafe else [("fold", None), ("fold", 2)])]
        for plan, chunk in plans:
            said = difference(vars(reference), vars(one.step(values, tasks, plan=plan, chunk=chunk)), 1e-9)
            assert not said, (
                f"plan {plan!r} in chunks of {chunk or 3} is not the loop: {said}; use the layers and helpers of"
                " metaforge.authoring.model and metaforge.authoring.functional, and no branch on a tensor's value"
            )
        looped = score_tasks(one.learner, values, tasks, keys(3), measure=True)
        said = difference(looped, score_tasks(one.learner, values, tasks, keys(3), plan="vmap", measure=True), 1e-9)
        assert not said, f"evaluation under vmap is not that of the loop: {said}"


def _inexact(subject: Subject) -> str:
    return "" if tags(subject).exact_meta_gradient else "tags.exact_meta_gradient says that the gradient is another one"


@check(*ALL, unless=_inexact)
def meta_gradient(subject: Subject) -> None:
    """The meta-gradient agrees with central differences of the loss to one part in a million, in float64."""
    for one in benches(subject):
        with Smooth():
            values, tasks = one.advanced(one.values()), one.tasks(2)
            params, state = split_state(values)
            grads = one.step(values, tasks).grads
            length = float(torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt())
            errors = [_error(one, params, state, tasks, grads, number) for number in range(DIRECTIONS)]
        error, change = statistics.median(error for error, _ in errors), max(change for _, change in errors)
        assert change > 0, "the loss does not depend on any parameter; differentiate through values, not copies of them"
        assert error <= 1e-6 * length, (
            f"the meta-gradient is off by {error:.3g} along a random direction, where it is {length:.3g} long; look for"
            " detach, no_grad, or layers that vmap differentiates wrongly, or say tags.exact_meta_gradient=False"
        )


def _error(one: Bench, params: Params, state: Params, tasks: Task, grads: Params, number: int) -> tuple[float, float]:
    """Return (distance of derivative and differences, their size) along one direction of standard normal numbers."""
    key = make_key(11, "direction", number)
    way = {name: normal(fold_in(key, name), value.shape, value.dtype) for name, value in params.items()}
    # A step of length 1e-3 whatever the number of parameters: small enough for fourth order, far above rounding.
    width = 1e-3 / sum(value.numel() for value in params.values()) ** 0.5

    def at(distance: float) -> float:
        return float(_objective(one, {n: v + distance * width * way[n] for n, v in params.items()} | state, tasks))

    differences = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * width)
    exact = float(sum((grads[name] * way[name]).sum() for name in params))
    return abs(exact - differences), abs(differences)


def _objective(one: Bench, values: Params, tasks: Task) -> Tensor:
    """Return the outer loss of a batch of tasks: the mean task loss and the regularizers' terms."""
    losses = _losses(one, values, tasks)
    terms = [term for r in one.regularizers for term in (r.combine(losses), r.penalty(values)) if term is not None]
    return losses.mean() + sum(terms)


def _losses(one: Bench, values: Params, tasks: Task) -> Tensor:
    """Return the task losses `[tasks]` of a batch."""
    drawn = enumerate(keys(len(tasks.support.x)))
    return torch.stack([one.learner.loss(values, one_task(tasks, i), key)[0] for i, key in drawn])


def _no_steps(subject: Subject) -> str:
    return "" if tags(subject).adapts else "tags.adapts says that it does not adapt in steps"


@check(*ALL, unless=_no_steps)
def adapts(subject: Subject) -> None:
    """Adaptation lowers the support loss, averaged over sixteen toy tasks."""
    for one in benches(subject):
        _assert_descends(one)


def _assert_descends(one: Bench) -> None:
    values, tasks = one.values(moved=False), one.tasks(16)
    before, after = (_mean_loss(one, values, Task(tasks.support, tasks.support), steps) for steps in (0, None))
    assert after < before, (
        f"the support loss is {before:.4g} before adaptation and {after:.4g} after it; follow the support loss"
        " downwards: updates are subtracted"
    )


@check("adapter")
def chain(subject: Subject) -> None:
    """In a chain with another adapter, before it or after it, names do not collide and the chain still descends."""
    alone = bench(subject).learner.init(make_key(0))
    for first in (True, False):
        one = chained(subject, first=first)
        names = one.learner.init(make_key(0)).keys()
        assert names == alone.keys(), f"in a chain other values appear: {sorted(names ^ alone.keys())}"
        _assert_descends(one)


@check(*ALL)
def learns(subject: Subject) -> None:
    """Thirty meta-steps with Adam improve a toy problem, measured on tasks that training never saw."""
    one = bench(subject)
    values = one.values(moved=False)
    held_out = one.tasks(32, split="test")
    before = _mean_loss(one, values, held_out, None)
    after = _mean_loss(one, _trained(one, values), held_out, None)
    assert after < before, (
        f"the loss on new tasks was {before:.4g} and is {after:.4g} after thirty meta-steps; the gradient of `loss`"
        " must lead to better predictions"
    )


def _trained(one: Bench, values: Params) -> Params:
    params, state = split_state(values)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=5e-3)
    tasks = one.tasks(120)
    for step in range(30):
        batch: Task = tree_map(lambda leaf, first=4 * step: leaf[first : first + 4], tasks)
        now = {name: leaf.detach() for name, leaf in leaves.items()} | state
        result = one.step(now, batch, plan=choose_plan(one.learner, "auto"))
        for name, leaf in leaves.items():
            leaf.grad = result.grads[name]
        optimizer.step()
        state = {name: value + result.state.get(name, 0) for name, value in state.items()}
    return {name: leaf.detach() for name, leaf in leaves.items()} | state


def _mean_loss(one: Bench, values: Params, tasks: Task, steps: int | None) -> float:
    """Return the mean task loss of predictions after adaptation, for a batch of tasks."""
    found = score_tasks(one.learner, values, tasks, steps=steps, plan="vmap")
    losses = [criterion(one.spec.kind)(*pair) for pair in zip(found.predictions, tasks.query.y, strict=True)]
    return float(torch.stack(losses).mean())
