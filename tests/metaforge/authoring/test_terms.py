"""What a learner with an inner loop tells regularizers of a task, and that it computes nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metaforge.authoring.keys import make_key
from metaforge.authoring.losses import cross_entropy
from metaforge.authoring.protocols import Options, Params, Parts, Regularizer
from metaforge.authoring.terms import INNER_LOOP_TERMS, inner_loop_terms
from metaforge.errors import ConfigError
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.reptile import Reptile
from toys import POLICIES, fresh, learner, smooth, spec, task

KEY = make_key(0)


class Reading(Regularizer):
    """Reads some terms."""

    Config = Options

    def __init__(self, *terms: str) -> None:
        self.terms = frozenset(terms)


def built(*terms: str, cls: type[Any] = MAML, **options: Any) -> Any:
    return learner(cls, backbone=smooth("batch"), regularizers={"one": Reading(*terms)} if terms else {}, **options)


def test_the_parts_name_what_all_regularizers_read() -> None:
    assert Parts(spec()).terms == frozenset()
    parts = Parts(spec(), regularizers={"one": Reading("a", "b"), "two": Reading("b", "c"), "three": Reading()})
    assert parts.terms == {"a", "b", "c"}


@pytest.mark.parametrize("norm", [policy for policy in POLICIES if policy != "per-step"])
def test_terms_before_adaptation_are_those_of_zero_steps(norm: str) -> None:
    one = built(*INNER_LOOP_TERMS, norm=norm, steps=2)
    values, example = fresh(one), task()
    terms = one.loss(values, example, KEY)[1].terms
    # A learner of zero steps whose query loss is that before adaptation.
    idle = built(*INNER_LOOP_TERMS, norm=norm, steps=0)
    loss, aux = idle.loss(values, example, KEY)
    torch.testing.assert_close(terms["loss_before"], loss)
    torch.testing.assert_close(terms["entropy_before"], aux.terms["entropy_after"])
    assert not torch.allclose(terms["entropy_before"], terms["entropy_after"])


def test_without_a_reader_nothing_is_computed() -> None:
    calls: list[int] = []
    plain, after, before = built(), built("entropy_after"), built("loss_before")
    for one in (plain, after, before):
        call = one.model.observe
        one.model.observe = lambda *args, call=call: calls.append(1) or call(*args)  # type: ignore[func-returns-value]
    values, counts, losses = fresh(plain), [], []
    for one in (plain, after, before):
        calls.clear()
        loss, aux = one.loss(values, task(), KEY)
        counts.append(len(calls))
        losses.append((loss, aux.metrics, aux.state))
        assert aux.terms.keys() == one.terms
    assert counts == [counts[0], counts[0], counts[0] + 1]
    assert losses[0] == losses[1] == losses[2]


def test_the_unadapted_pass_leaves_no_trace_in_the_running_statistics() -> None:
    plain, asked = (built(*terms, norm="running") for terms in ((), ("loss_before",)))
    values = fresh(plain)
    states = [one.loss(values, task(), KEY)[1].state for one in (plain, asked)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(change, states[1][name]) for name, change in states[0].items())


def test_a_head_of_zeros_has_the_entropy_of_the_uniform_distribution() -> None:
    one = built("entropy_before")
    head = [f"model.{name}" for name in one.model.names[-2:]]
    values = {name: torch.zeros_like(value) if name in head else value for name, value in fresh(one).items()}
    terms = one.loss(values, task(), KEY)[1].terms
    torch.testing.assert_close(terms["entropy_before"], torch.tensor(math.log(3), dtype=torch.float64))


def test_only_classes_have_entropies() -> None:
    with pytest.raises(ConfigError, match="entropy_after, which predictions have in classification only"):
        learner(MAML, kind="regression", regularizers={"one": Reading("entropy_after", "loss_before")})
    regression = learner(MAML, kind="regression", regularizers={"one": Reading("loss_before")})
    assert regression.loss(fresh(regression), task(0, "regression"), KEY)[1].terms.keys() == {"loss_before"}


def test_a_learner_that_has_no_query_loss_does_not_promise_them() -> None:
    assert MAML.tags.terms == INNER_LOOP_TERMS
    assert Reptile.tags.terms == frozenset()


def test_predictions_before_adaptation_are_made_only_if_a_term_needs_them() -> None:
    logits, y = torch.zeros(2, 4), torch.tensor([0, 3])

    def before() -> Tensor:
        raise AssertionError("not needed")

    terms: Params = inner_loop_terms(frozenset({"entropy_after"}), before, logits, y, cross_entropy)
    assert terms == {"entropy_after": pytest.approx(math.log(4))}
    assert inner_loop_terms(frozenset(), before, logits, y, cross_entropy) == {}
