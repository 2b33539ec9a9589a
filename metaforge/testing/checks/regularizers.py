"""Checks of regularizers alone; the checks of learners run on the toy learner with the regularizer, too."""

from __future__ import annotations

from torch import Tensor

from metaforge.authoring.protocols import Params
from metaforge.testing.bench import Bench, build_bench, difference
from metaforge.testing.check import check
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject


@check("regularizer")
def quiet(subject: Subject) -> None:
    """In evaluation, where there is no key, two identical calls give identical predictions."""
    bench = build_bench(subject)
    values, task = bench.values(), bench.task()
    with assert_generators_unchanged(f"evaluation with {subject.label}"):
        first, second = bench.predict(values, task), bench.predict(values, task)
    mismatch = difference(first, second)
    assert not mismatch, (
        f"two evaluations give different predictions: {mismatch}; draw no noise when at.key is None, or draw it from a"
        " fixed key"
    )


@check("regularizer")
def effect(subject: Subject) -> None:
    """With its default options it changes the values, the losses or the gradients of a run."""
    with_it, without = build_bench(subject), build_bench(subject, without_regularizer=True)
    changed = difference(_step_results(with_it), _step_results(without))
    assert changed, "values, losses and gradients equal those without it; choose default options that have an effect"


def _step_results(bench: Bench) -> tuple[Params, Tensor, Params]:
    """Return values, losses and gradients of one outer step."""
    values = bench.values()
    step = bench.step(values, bench.tasks(3))
    return values, step.losses, step.grads
