"""Tests of the selection of checks, of `parametrize_with_checks`, and of the outcomes of checks."""

from __future__ import annotations

from typing import Any

import pytest

import faulty_learners
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.testing import Subject, checks_for, parametrize_with_checks, skipped_for
from metaforge.testing import run_checks as run_checks_module
from metaforge.testing.checks import general
from metaforge.testing.run_checks import all_checks, counts, run_checks
from metaforge.testing.toy import ToyLearner

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
    class Raw(ToyLearner):
        """Learns nothing."""

        def init(self, key: Any) -> dict[str, Any]:
            return {}

    subject = Subject("learner", "raw", Raw)
    names = {check.name for check, reason in skipped_for(subject) if reason.startswith("its values have no parameters")}
    assert names == {"meta-gradient", "learns"}
    assert not [check for check, _ in skipped_for(Subject("learner", "toy", ToyLearner)) if check.name in names]
