"""Which checks a subject gets, what `parametrize_with_checks` makes of them, and what counts as a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import faulty_learners
from metaforge.authoring.protocols import Options
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.registry.scan import scan
from metaforge.testing import Subject, checks_for, parametrize_with_checks, skipped_for
from metaforge.testing import run_checks as collection
from metaforge.testing.checks import general
from metaforge.testing.run_checks import all_checks, counts, outcomes
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyLearner

ADAPTING = Subject.of(faulty_learners.Right)


def cases(decorator: Any) -> list[Any]:
    return list(decorator.mark.args[1])


def test_a_subject_is_a_name_a_qualified_name_a_class_or_a_subject() -> None:
    for what in ("maml", "learner:maml", "learner:metaforge:maml", "metaforge:maml"):
        found = Subject.of(what)
        assert (found.kind, found.name) == ("learner", "maml")
    assert Subject.of(ToyDescent).kind == "adapter"
    assert Subject.of(ADAPTING) is ADAPTING


def test_a_name_that_means_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="Did you mean 'maml'"):
        Subject.of("mamll")
    with pytest.raises(PluginError, match="Subject\\(kind, name, cls\\)"):
        Subject.of(dict)


def test_checks_follow_from_the_kind_and_from_what_the_class_says() -> None:
    steps, skipped = ({c.name for c in checks_for(ADAPTING)}, {c.name: r for c, r in skipped_for(ADAPTING)})
    assert {"adapts", "meta-gradient", "steps"} <= steps
    assert "labels" not in steps | skipped.keys()
    assert set(skipped) == {"import", "ways"}
    assert "fixed_ways" in skipped["ways"]
    assert "adapts" in {check.name for check, _ in skipped_for(Subject.of(faulty_learners.Centres))}


def test_every_check_of_a_kind_applies_or_says_why_not() -> None:
    for entry in scan().entries():
        if entry.distribution != "metaforge":
            continue
        subject = Subject.of(f"{entry.kind}:{entry.qualified}")
        found = {check.name for check in checks_for(subject)} | {check.name for check, _ in skipped_for(subject)}
        assert found == {check.name for check in all_checks() if entry.kind in check.kinds}


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
def test_an_expected_failure_is_no_failure(subject: Subject, check: Any) -> None:
    if check.name in ("no-leak", "summary", "contract"):
        check(subject)


def test_an_expected_failure_must_be_a_check_of_the_subject_with_a_reason() -> None:
    with pytest.raises(ConfigError, match=r"'no-leek' is no check of the learner 'Right'\. Did you mean 'no-leak'"):
        parametrize_with_checks([ADAPTING], expected_failures={"no-leek": "a slip"})
    with pytest.raises(ConfigError, match="'ways' is no check"):
        parametrize_with_checks([ADAPTING], expected_failures={"ways": "it does not apply"})
    with pytest.raises(ConfigError, match="has no reason"):
        parametrize_with_checks([ADAPTING], expected_failures={"no-leak": " "})


def test_outcomes_tell_failures_expected_ones_and_those_whose_reason_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_MODULES", (general,))
    expected = {"summary": "it will be written", "contract": "it is another one"}
    found = {o.check.name: o for o in outcomes(Subject.of(faulty_learners.Mute), expected)}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "summary": "expected", "contract": "failed", "config": "ok", "defaults": "ok", "import": "skipped"
    }  # fmt: skip
    assert found["summary"].said == "it will be written"
    assert found["contract"].said == "it passes, though a failure is expected: it is another one"
    assert counts(list(found.values())) == {"run": 4, "failed": 1, "expected failures": 1, "not applicable": 1}
    bad = {o.check.name: o.said for o in outcomes(Subject.of(faulty_learners.Lenient), {}) if o.status == "failed"}
    assert {"contract", "config"} <= bad.keys()
    assert "an option that does not exist is taken" in bad["config"]


def test_whatever_a_plugin_raises_is_a_failed_check_that_names_it() -> None:
    class Broken(ToyLearner):
        """Cannot predict."""

        def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
            raise ZeroDivisionError("oh no")

    (check,) = [check for check in all_checks() if check.name == "no-leak"]
    with pytest.raises(AssertionError, match=r"predicts for none of the inputs tried.*ZeroDivisionError.*oh no"):
        check(Subject.of(Broken))
    with pytest.raises(AssertionError, match=r"learner 'Broken' raised ZeroDivisionError: oh no"):
        check(Subject("learner", "Broken", Broken, x_shape=(6,)))


def test_options_and_inputs_of_a_subject_reach_the_plugin() -> None:
    class Images(faulty_learners.Centres):
        """Takes images of two channels alone."""

        class Config(Options):
            channels: int = 1

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts)
            assert parts.spec.x_shape[0] == config.channels

    (check,) = [check for check in all_checks() if check.name == "shapes"]
    check(Subject("learner", "images", Images))
    check(Subject("learner", "images", Images, options={"channels": 2}, x_shape=(2, 5, 5)))
    with pytest.raises(AssertionError):
        check(Subject("learner", "images", Images, options={"channels": 2}))


def test_missing_data_are_the_data_set_s_own_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        Subject.of("dataset:omniglot").at(tmp_path).ready()
    Subject.of("learner:maml").ready()


def test_a_data_set_that_cannot_be_built_is_left_to_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, config: Any, *, root: Path) -> None:
        raise ValueError("oh no")

    monkeypatch.setattr(ToyClasses, "__init__", broken)
    toy = Subject("dataset", "toy", ToyClasses)
    toy.ready()
    (spec,) = [check for check in checks_for(toy) if check.name == "spec"]
    with pytest.raises(AssertionError, match="dataset 'toy' raised ValueError: oh no"):
        spec(toy)
