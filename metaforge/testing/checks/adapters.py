"""Checks of adapters alone; the checks of learners run on the toy learner with the adapter, too."""

from __future__ import annotations

import torch
from torch import Tensor

from metaforge.authoring.functional import sum_of
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import STATE, Adapter, InnerStep, Params
from metaforge.testing.bench import build_adjoint_bench, build_bench, build_chain_bench, difference
from metaforge.testing.check import check
from metaforge.testing.checks.gradients import assert_adaptation_lowers_support_loss
from metaforge.testing.subject import Subject


@check("adapter")
def updates(subject: Subject) -> None:
    """`update` returns updates with the names, shapes and dtypes of the gradients, and a state that keeps its own."""
    adapter: Adapter = subject.build()
    params = {"first.weight": torch.ones(2, 3, dtype=torch.float64), "bias": torch.ones(3, dtype=torch.float64)}
    grads = {name: torch.full_like(value, 0.5) for name, value in params.items()}
    meta = {name: value.double() for name, value in adapter.init(params, make_key(0)).items()}
    state = adapter.start(meta, params)
    for step in range(2):
        inner = InnerStep(step, torch.tensor(1.0, dtype=torch.float64), _squares)
        result, new_state = adapter.update(meta, grads, state, params, inner)
        mismatch = _layout_difference(result, grads)
        assert not mismatch, f"the updates must have the names, shapes and dtypes of the gradients: {mismatch}"
        mismatch = _layout_difference(new_state, state)
        assert not mismatch, f"update must return a state with the names, shapes and dtypes of the old one: {mismatch}"
        state = new_state
    entries = {name: value for name, value in meta.items() if name.startswith(STATE)}
    unknown = sorted(adapter.carry(meta, state).keys() - entries.keys())
    assert not unknown, (
        f"carry returns {unknown}, which init does not return; carry may only add to `state.` entries that init returns"
    )


def _squares(params: Params) -> Tensor:
    return 0.25 * sum_of(value.square().sum() for value in params.values())


def _layout_difference(first: Params, second: Params) -> str:
    """Return how names, shapes or dtypes differ, or an empty string."""
    layouts = [
        {name: (list(value.shape), str(value.dtype)) for name, value in side.items()} for side in (first, second)
    ]
    return difference(layouts[0], layouts[1])


@check("adapter")
def chain(subject: Subject) -> None:
    """In a chain with another adapter, before or after it, its values keep their names and the support loss falls."""
    alone = build_bench(subject).learner.init(make_key(0))
    for first in (True, False):
        bench = build_chain_bench(subject, first=first)
        names = bench.learner.init(make_key(0)).keys()
        assert names == alone.keys(), (
            f"the values in a chain differ from those of the adapter alone: {sorted(names ^ alone.keys())}; init must"
            " return names that depend on the parameters only"
        )
        assert_adaptation_lowers_support_loss(bench)


@check("adapter")
def recomputed(subject: Subject) -> None:
    """Where inner steps are computed again in the backward pass, losses, gradients and state are those without it."""
    stored, again = (build_adjoint_bench(subject, adjoint) for adjoint in ("unroll", "recompute"))
    values, tasks = stored.values(), stored.tasks(2)
    for plan in ("loop", "vmap", "fold"):
        first, second = (
            {"losses": step.losses, **step.grads, **step.state}
            for step in (bench.step(values, tasks, plan=plan) for bench in (stored, again))
        )
        mismatch = difference(first, second, 1e-9)
        assert not mismatch, (
            f"with adjoint=recompute and plan {plan} the result is another one: {mismatch}; update must use no"
            " tensors but its arguments, which are kept for the backward pass"
        )
