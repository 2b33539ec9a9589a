"""Tests of the selection of checks, of `parametrize_with_checks`, and of the outcomes of checks."""

from __future__ import annotations

import unittest
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field

import faulty_learners
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.testing import Subject, check_plugin, checks_for, parametrize_with_checks, skipped_for
from metaforge.testing import run_checks as run_checks_module
from metaforge.testing.check import Skipped, check
from metaforge.testing.checks import general, gradients, learners
from metaforge.testing.run_checks import all_checks, by_cause, counts, run_checks

ADAPTING = Subject.of(faulty_learners.Right)


def cases(decorator: Any) -> list[Any]:
    return list(decorator.mark.args[1])


def test_checks_follow_from_kind_and_class_attributes() -> None:
    names, skipped = ({c.name for c in checks_for(ADAPTING)}, {c.name: r for c, r in skipped_for(ADAPTING)})
    assert {"adapts", "meta-gradient", "steps"} <= names
    assert "labels" not in names | skipped.keys()
    assert set(skipped) == {"import", "ways"}
    assert "fixed_ways" in skipped["ways"]
    assert "adapts" in {check.name for check, _ in skipped_for(Subject.of(faulty_learners.Centres))}


def test_every_check_of_a_kind_applies_or_has_a_reason_why_not() -> None:
    for entry in scan().entries():
        if entry.distribution != "metaforge":
            continue
        subject = Subject.of(f"{entry.kind}:{entry.qualified}")
        names = {check.name for check in checks_for(subject)} | {check.name for check, _ in skipped_for(subject)}
        assert names == {check.name for check in all_checks() if entry.kind in check.kinds}


def test_cases_have_readable_names_and_expected_failures_are_strict() -> None:
    found = cases(parametrize_with_checks([ADAPTING], expected_failures={"no-leak": "it is shown to leak"}))
    assert "Right-vectorised" in [case.id for case in found]
    (leak,) = [case for case in found if case.id == "Right-no-leak"]
    (mark,) = leak.marks
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "it is shown to leak", "strict": True, "raises": AssertionError}
    assert not any(case.marks for case in found if case is not leak)


@parametrize_with_checks(
    [Subject.of(faulty_learners.Leaking)],
    expected_failures={"no-leak": "it keeps query labels"},
)
def test_an_expected_failure_does_not_fail_the_test(subject: Subject, check: Any) -> None:
    if check.name in ("no-leak", "summary", "contract"):
        check(subject)


def test_an_expected_failure_must_be_a_check_of_the_subject_with_a_reason() -> None:
    with pytest.raises(ConfigError, match=r"'no-leek' is not a check of the learner 'Right'\. Did you mean 'no-leak'"):
        parametrize_with_checks([ADAPTING], expected_failures={"no-leek": "a slip"})
    with pytest.raises(ConfigError, match="'ways' is not a check"):
        parametrize_with_checks([ADAPTING], expected_failures={"ways": "it does not apply"})
    with pytest.raises(ConfigError, match="has no reason"):
        parametrize_with_checks([ADAPTING], expected_failures={"no-leak": " "})


def test_failures_of_one_cause_form_a_group_and_others_do_not() -> None:
    class Broken(faulty_learners.Centres):
        """Cannot predict."""

        def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
            raise ZeroDivisionError("raised in predict")

    subject = Subject("learner", "broken", Broken, x_shape=(6,))
    outcomes = check_plugin(subject)
    groups = [[outcome.check.name for outcome in group] for group in by_cause(outcomes)]
    assert len(groups) == 1
    assert {"shapes", "pure", "no-leak", "learns"} <= set(groups[0])
    causes = {outcome.cause for outcome in outcomes if outcome.status == "failed"}
    (cause,) = causes
    assert cause.startswith(f"ZeroDivisionError at {__file__}:")
    assert {outcome.cause for outcome in outcomes if outcome.status != "failed"} == {""}
    # Without an input shape the same error is found in the search for one.
    found = by_cause(check_plugin(Subject("learner", "broken", Broken)))
    assert [group[0].cause for group in found] == [cause]
    different = [outcome for outcome in check_plugin(faulty_learners.Lenient) if outcome.status == "failed"]
    assert len(by_cause(different)) == len(different) > 1


def test_a_check_that_cannot_judge_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecided(subject: Subject) -> None:
        """It is decided."""
        raise Skipped(f"nothing is known of {subject.label}")

    monkeypatch.setattr(run_checks_module, "_MODULES", (SimpleNamespace(one=check("learner")(undecided)),))
    for expected in ({}, {"undecided": "it was a failure once"}):
        (outcome,) = run_checks(ADAPTING, expected)
        assert (outcome.status, outcome.message) == ("skipped", "nothing is known of learner 'Right'")
    with pytest.raises(unittest.SkipTest):
        check("learner")(undecided)(ADAPTING)


def test_options_reach_the_plugin_and_decide_which_checks_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    class Either(faulty_learners.Right):
        """Its gradient is exact or not, as its option says."""

        class Config(InnerLoopOptions):
            exact: bool = Field(True, description="whether the gradient is exact")

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts)
            self.tags = replace(self.tags, exact_meta_gradient=config.exact)

    # All checks would be run twice.
    monkeypatch.setattr(run_checks_module, "_MODULES", (gradients, learners))
    by_default = {outcome.check.name: outcome for outcome in check_plugin(Either)}
    assert by_default["meta-gradient"].status == "ok"
    inexact = {outcome.check.name: outcome for outcome in check_plugin(Either, options={"exact": False})}
    assert inexact["meta-gradient"].status == "skipped"
    assert "exact_meta_gradient is False" in inexact["meta-gradient"].message
    assert inexact["tags"].status == "ok"
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        check_plugin(Either, options={"exakt": False})


def test_outcomes_of_failures_expected_failures_and_unexpected_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks_module, "_MODULES", (general,))
    expected = {"summary": "it will be written", "contract": "it is another one"}
    found = {o.check.name: o for o in run_checks(Subject.of(faulty_learners.Mute), expected)}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "summary": "expected", "contract": "failed", "config": "ok", "defaults": "ok", "import": "skipped"
    }  # fmt: skip
    assert found["summary"].message == "it will be written"
    assert found["contract"].message == "it passes, but is expected to fail: it is another one"
    assert counts(list(found.values())) == {"run": 4, "failed": 1, "expected failures": 1, "not applicable": 1}
    bad = {o.check.name: o.message for o in run_checks(Subject.of(faulty_learners.Lenient), {}) if o.status == "failed"}
    assert {"contract", "config"} <= bad.keys()
    assert "Config accepts an option that does not exist" in bad["config"]


def test_a_learner_without_parameters_has_no_meta_gradient_to_check() -> None:
    subject = Subject.of(faulty_learners.Untrained)
    names = {check.name for check, reason in skipped_for(subject) if reason.startswith("its values have no parameters")}
    assert names == {"meta-gradient", "learns"}
    assert not [check for check, _ in skipped_for(Subject.of(faulty_learners.Centres)) if check.name in names]
