"""Checks of gradients: equal under every plan, equal to finite differences, and useful for learning.

One file for four kinds of plugins: the gradients of a learner, and of the toy learner with an adapter, regularizer or
backbone, are checked in the same way.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.progress import with_progress
from metaforge.authoring.protocols import Params, Task
from metaforge.engine.batch import MetaStep, score_tasks
from metaforge.engine.network_check import moved_by_rounding
from metaforge.engine.plans import choose_plan
from metaforge.engine.probe import fused_norms
from metaforge.testing.bench import Bench, build_bench, build_benches, difference, learner_tags, task_keys
from metaforge.testing.check import Skipped, check
from metaforge.testing.checks.learners import ALL
from metaforge.testing.differences import Comparison, compare
from metaforge.testing.smooth import SmoothMode
from metaforge.testing.subject import Subject

DIRECTIONS = 5
# The largest error of a meta-gradient, relative to its norm. Where the inner problem is solved by iterations and the
# meta-gradient by others, both leave a residual.
TOLERANCE, TOLERANCE_AT_CONVERGENCE = 1e-6, 1e-4


@check(*ALL)
def vectorised(subject: Subject) -> None:
    """All plans (loop, vmap, folded tasks) and chunk sizes give equal gradients, state, metrics and predictions."""
    for bench in build_benches(subject):
        values, tasks = bench.values(), bench.tasks(3)
        assert_plans_agree(bench)
        kind = bench.spec.kind
        looped = score_tasks(bench.learner, values, tasks, task_keys(3), kind=kind, measure=True)
        batched = score_tasks(bench.learner, values, tasks, task_keys(3), kind=kind, plan="vmap", measure=True)
        mismatch = difference(looped, batched, 1e-9)
        assert not mismatch, (
            f"evaluation under vmap differs from the loop: {mismatch}; use the layers and functions of"
            " metaforge.authoring, and do not branch on the value of a tensor"
        )


def assert_plans_agree(bench: Bench) -> None:
    """Raise `AssertionError` unless an outer step is the same by every plan and with every chunk size."""
    values, tasks = bench.values(), bench.tasks(3)
    reference = bench.step(values, tasks)
    # torch's own norm layers give wrong second derivatives under grad(vmap), so a learner that adapts through them is
    # not run with the plan `fold`.
    unsafe = bench.learner.tags.adapts and fused_norms(bench.learner, values, one_task(tasks), task_keys(1)[0])
    plans = [("vmap", None), ("vmap", 2), *([] if unsafe else [("fold", None), ("fold", 2)])]
    for plan, chunk in plans:
        step = bench.step(values, tasks, plan=plan, chunk=chunk)
        mismatch = difference(vars(reference), vars(step), 1e-9)
        if mismatch and not difference(vars(reference), vars(step), 10 * _rounding(bench, values, tasks, reference)):
            continue
        assert not mismatch, (
            f"plan {plan!r} with {chunk or 3} tasks per chunk differs from the loop: {mismatch}; use the layers and"
            " functions of metaforge.authoring, and do not branch on the value of a tensor"
        )


def _rounding(bench: Bench, values: Params, tasks: Task, reference: MetaStep) -> float:
    """Return a tolerance at which steps agree whose parameters differ by a relative 1e-14, as rounding makes them.

    It is large for an ill-conditioned learner, such as one with an inner loop that diverges.
    """
    step = bench.step(values | moved_by_rounding(split_state(values)[0]), tasks)
    found = (10.0**power for power in range(-12, 0) if not difference(vars(reference), vars(step), 10.0**power))
    return next(found, 0.0)


def _trains_nothing(subject: Subject) -> str:
    """Return that a learner has no parameters, or an empty string; other checks report a learner that cannot init."""
    if subject.kind != "learner":
        return ""
    try:
        params, _ = split_state(build_bench(subject).values())
    except Exception:
        return ""
    return "" if params else "its values have no parameters, so there is nothing to train"


def _inexact(subject: Subject) -> str:
    if learner_tags(subject).exact_meta_gradient:
        return _trains_nothing(subject)
    return "tags.exact_meta_gradient is False: the gradient of `loss` is not the derivative of its value"


@check(*ALL, skip_reason=_inexact)
def meta_gradient(subject: Subject) -> None:
    """The meta-gradient agrees with finite differences of the loss in float64 to 1e-6, or at convergence to 1e-4."""
    tolerance = TOLERANCE_AT_CONVERGENCE if learner_tags(subject).converges_at else TOLERANCE
    rough: list[Comparison] = []
    for bench in build_benches(_at_convergence(subject)):
        rough += assert_exact_gradient(bench, tolerance)
    if rough:
        raise Skipped(
            "the loss is too rough to judge: its finite differences do not converge as their step becomes smaller, for"
            f" example {', '.join(f'{estimate:.3g}' for estimate in rough[0].estimates[::3])} along a direction in"
            f" which the derivative is {rough[0].derivative:.3g}"
        )


def assert_exact_gradient(bench: Bench, tolerance: float = TOLERANCE) -> list[Comparison]:
    """Raise `AssertionError` unless the meta-gradient of two toy tasks agrees with finite differences.

    Args:
        bench: The learner with its toy tasks.
        tolerance: Tolerance of the difference, relative to the norm of the meta-gradient.

    Returns:
        The comparisons if the loss is too rough along all directions to judge the gradient; else an empty list.
    """
    with SmoothMode():
        norm, comparisons = _compare_with_differences(bench, tolerance)
    assert any(comparison.estimates[0] for comparison in comparisons), (
        "the loss does not depend on any parameter; compute it from the tensors in `values`, not from copies"
    )
    count = Counter(comparison.verdict for comparison in comparisons)
    error = max((comparison.error for comparison in comparisons if comparison.verdict == "differs"), default=0.0)
    # A rough function may have a smooth direction or two, and one of them would show that the gradient is wrong.
    assert not count["differs"] or count["agrees"] > count["differs"], (
        f"along random directions the meta-gradient differs from finite differences by up to {error:.3g}, while its"
        f" norm is {norm:.3g}; look for detach, no_grad, or layers that vmap differentiates wrongly, or set"
        " tags.exact_meta_gradient=False (or tags.converges_at, if the gradient is exact at convergence)"
    )
    return [] if count["agrees"] else comparisons


def _at_convergence(subject: Subject) -> Subject:
    """Return a learner with the number of inner steps from which on its meta-gradient is exact."""
    steps = learner_tags(subject).converges_at
    if not steps:
        return subject
    assert "steps" in subject.cls.Config.model_fields, (
        f"tags.converges_at is {steps}, but there is no option `steps`; add one for the inner steps in training"
    )
    return subject.with_options({"steps": steps})


def _compare_with_differences(bench: Bench, tolerance: float) -> tuple[float, list[Comparison]]:
    """Return the norm of the meta-gradient, and its comparisons with finite differences along random directions."""
    values, tasks = bench.with_updated_state(bench.values()), bench.tasks(2)
    params, state = split_state(values)
    grads = bench.step(values, tasks).grads
    norm = float(torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt())
    # The first step has a length of 1e-3, whatever the number of parameters. The error of the fourth-order differences
    # and the rounding error are then far below the tolerance, unless the loss is rough.
    width = 1e-3 / sum(value.numel() for value in params.values()) ** 0.5
    comparisons = []
    for number in range(DIRECTIONS):
        key = make_key(11, "direction", number)
        direction = {name: normal(fold_in(key, name), value.shape, value.dtype) for name, value in params.items()}

        def loss_at(distance: float, direction: Params = direction) -> float:
            shifted = {name: value + distance * direction[name] for name, value in params.items()}
            return float(_outer_loss(bench, shifted | state, tasks))

        derivative = float(sum((grads[name] * direction[name]).sum() for name in params))
        comparisons.append(compare(loss_at, derivative, width=width, tolerance=tolerance * norm))
    return norm, comparisons


def _outer_loss(bench: Bench, values: Params, tasks: Task) -> Tensor:
    """Return the outer loss of a batch of tasks: the mean task loss plus the terms of the regularizers."""
    keys = task_keys(len(tasks.support.x))
    pairs = [bench.learner.loss(values, one_task(tasks, i), key) for i, key in enumerate(keys)]
    losses, total = torch.stack([loss for loss, _ in pairs]), torch.zeros(())
    for regularizer in bench.regularizers:
        terms = {name: torch.stack([aux.terms[name] for _, aux in pairs]) for name in sorted(regularizer.terms)}
        for added in (regularizer.combine(losses, terms), regularizer.penalty(values)):
            total = total if added is None else total + added
    return losses.mean() + total


def _does_not_adapt(subject: Subject) -> str:
    return "" if learner_tags(subject).adapts else "tags.adapts is False: it has no inner steps"


@check(*ALL, skip_reason=_does_not_adapt)
def adapts(subject: Subject) -> None:
    """Adaptation lowers the support loss, averaged over sixteen toy tasks."""
    for bench in build_benches(subject):
        assert_adaptation_lowers_support_loss(bench)


def assert_adaptation_lowers_support_loss(bench: Bench) -> None:
    """Raise `AssertionError` unless the mean support loss of sixteen toy tasks is lower after adaptation."""
    values, tasks = bench.values(perturbed=False), bench.tasks(16)
    before, after = (_mean_loss(bench, values, Task(tasks.support, tasks.support), steps) for steps in (0, None))
    assert after < before, (
        f"adaptation must lower the support loss, but it is {before:.4g} before and {after:.4g} after; check the sign"
        " of the updates, which are subtracted from the parameters"
    )


@check(*ALL, skip_reason=_trains_nothing)
def learns(subject: Subject) -> None:
    """Thirty outer steps with Adam on toy tasks lower the loss on tasks that were not used for training."""
    bench = build_bench(subject)
    values = bench.values(perturbed=False)
    new_tasks = bench.tasks(32, split="test")
    before = _mean_loss(bench, values, new_tasks, None)
    after = _mean_loss(bench, _train(bench, values), new_tasks, None)
    assert after < before, (
        f"training must lower the loss on new tasks, but it is {before:.4g} before and {after:.4g} after thirty outer"
        " steps; check that the gradient of `loss` points towards better predictions"
    )


def _train(bench: Bench, values: Params) -> Params:
    """Return the values after thirty outer steps on four tasks each."""
    params, state = split_state(values)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=5e-3)
    tasks = bench.tasks(120)
    for step in range(30):
        batch: Task = tree_map(lambda leaf, first=4 * step: leaf[first : first + 4], tasks)
        current = with_progress({name: leaf.detach() for name, leaf in leaves.items()} | state, step, step / 30)
        phase = bench._replace(learner=bench.learner.during(step / 30))
        result = phase.step(current, batch, plan=choose_plan(phase.learner, "auto"))
        for name, leaf in leaves.items():
            leaf.grad = result.grads[name]
        optimizer.step()
        state = {name: value + result.state.get(name, 0) for name, value in state.items()}
    return {name: leaf.detach() for name, leaf in leaves.items()} | state


def _mean_loss(bench: Bench, values: Params, tasks: Task, steps: int | None) -> float:
    """Return the mean loss of the predictions for a batch of tasks after `steps` inner steps (None: the default)."""
    keys, kind = task_keys(len(tasks.support.x)), bench.spec.kind
    scored = score_tasks(bench.learner, values, tasks, keys, kind=kind, steps=steps, plan="vmap")
    losses = [kind.loss(*pair) for pair in zip(scored.predictions, tasks.query.y, strict=True)]
    return float(torch.stack(losses).mean())
