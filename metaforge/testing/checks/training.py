"""Checks of what depends on more than one task: the progress of the training, its phases, the terms of regularizers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metaforge.authoring.keys import make_key
from metaforge.authoring.progress import with_progress
from metaforge.authoring.protocols import Kind
from metaforge.errors import ConfigError
from metaforge.registry.contract import contract_errors
from metaforge.testing.bench import Bench, build_bench, build_benches, learner_tags, task_kinds
from metaforge.testing.check import check
from metaforge.testing.checks.gradients import assert_exact_gradient, assert_plans_agree
from metaforge.testing.checks.learners import ALL, KEY
from metaforge.testing.subject import Subject

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@check(*ALL)
def progress(subject: Subject) -> None:
    """Losses, gradients and predictions are finite at the start of a training, during it and at its end."""
    for bench in build_benches(subject):
        tasks = bench.tasks(2)
        for share in SHARES:
            values = with_progress(bench.values(), step=int(1000 * share), share=share)
            step = bench.step(values, tasks)
            computed = [step.losses, *step.grads.values(), bench.predict(values, bench.task())]
            assert all(bool(tensor.isfinite().all()) for tensor in computed), (
                f"with {share:.0%} of the training done, the loss, its gradient or a prediction is not finite; the"
                " share reaches 0 and 1, so do not divide by it or take its logarithm"
            )


@check("learner")
def during(subject: Subject) -> None:
    """`during` returns one learner per phase, whose values have the same names and shapes, and all plans agree."""
    for bench in build_benches(subject):
        learner, seen = bench.learner, [bench.learner]
        shapes = _shapes(bench)
        for share in SHARES:
            phase = learner.during(share)
            errors = contract_errors("learner", type(phase))
            assert not errors, f"during({share}) returns a {type(phase).__name__}, which is no learner: {errors[0]}"
            assert phase is learner.during(share), (
                f"two calls of during({share}) return two objects, for each of which a run plans and compiles its steps"
                " anew; build the learners in __init__ and return one of them"
            )
            if any(phase is one for one in seen):
                continue
            seen.append(phase)
            of_phase = bench._replace(learner=phase)
            differing = sorted(dict(shapes.items() ^ _shapes(of_phase).items()))
            assert not differing, (
                f"during({share}) returns a learner whose values have other names or shapes: {differing[:3]}; all"
                " learners of one training share its values"
            )
            assert_plans_agree(of_phase)


def _shapes(bench: Bench) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in bench.learner.init(make_key(0)).items()}


def _gives_no_terms(subject: Subject) -> str:
    return "" if learner_tags(subject).terms else "tags.terms is empty: it gives no terms to regularizers"


@check("learner", skip_reason=_gives_no_terms)
def terms(subject: Subject) -> None:
    """`loss` gives the terms that regularizers read and its tags name, with exact gradients, and computes no others."""
    tags, given = learner_tags(subject), {}
    for kind in task_kinds(subject):
        # With the shape of the inputs that was found, an error of the learner is not mistaken for a wrong shape.
        shaped = replace(subject, x_shape=build_bench(subject, kind).spec.x_shape)
        given[kind] = frozenset(name for name in tags.terms if _accepts(shaped, kind, name))
    never = sorted(tags.terms.difference(*given.values()))
    assert not never, f"tags.terms has {never}, but the learner refuses a regularizer that reads them"
    for kind, names in given.items():
        unasked = _terms_of(build_bench(subject, kind))
        assert not unasked, (
            f"the loss computes {sorted(unasked)}, which no regularizer reads; compute what Parts.terms names"
        )
        if not names:
            continue
        bench = build_bench(subject, kind, terms=names)
        found = _terms_of(bench)
        missing = sorted(names - found.keys())
        assert not missing, f"tags.terms has {missing}, but Aux.terms has only {sorted(found)}"
        for name in names:
            valid = found[name].shape == () and found[name].dtype == torch.float64
            assert valid, (
                f"the term {name!r} is {found[name].dtype} {list(found[name].shape)}; it must be a scalar like the loss"
            )
        assert_plans_agree(bench)
        if tags.exact_meta_gradient and not tags.converges_at:
            assert_exact_gradient(bench)


def _accepts(subject: Subject, kind: Kind, term: str) -> bool:
    """Return whether a learner can be built with a regularizer that reads a term; not all kinds of tasks have it."""
    try:
        build_bench(subject, kind, terms=frozenset({term}))
    except ConfigError:
        return False
    return True


def _terms_of(bench: Bench) -> dict[str, Tensor]:
    return dict(bench.learner.loss(bench.values(), bench.task(), KEY)[1].terms)
