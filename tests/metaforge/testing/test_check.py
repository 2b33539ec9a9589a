"""Tests of a single check: the decorator, and exceptions that become failures."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge.testing import Subject
from metaforge.testing.check import cause_of, check, plugin_line
from metaforge.testing.run_checks import all_checks
from metaforge.testing.toy import ToyDescent, ToyLearner


def test_a_decorated_function_is_a_check_with_its_name_and_docstring() -> None:
    @check("adapter", "backbone", skip_reason=lambda subject: f"not for {subject.label}")
    def two_words(subject: Subject) -> None:
        """It has two words."""
        raise AssertionError("it has more")

    subject = Subject.of(ToyDescent)
    assert (two_words.name, two_words.text) == ("two-words", "It has two words.")
    assert two_words.kinds == {"adapter", "backbone"}
    assert two_words.skip_reason(subject) == "not for adapter 'ToyDescent'"
    with pytest.raises(AssertionError, match=r"^it has more$"):
        two_words(subject)


def test_another_name_can_be_set_and_a_check_applies_by_default() -> None:
    @check("adapter", name="other")
    def name(subject: Subject) -> None: ...

    assert name.name == "other"
    assert name.skip_reason(Subject.of(ToyDescent)) == ""


def test_any_exception_of_a_plugin_is_a_failure_that_names_the_plugin() -> None:
    class Broken(ToyLearner):
        """Cannot predict."""

        def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
            raise ZeroDivisionError("oh no")

    (check,) = [check for check in all_checks() if check.name == "no-leak"]
    with pytest.raises(
        AssertionError, match=r"makes no predictions for any of the input shapes tried.*ZeroDivisionError.*oh no"
    ):
        check(Subject.of(Broken))
    place = r"\(test_check.py, line \d+\)"
    with pytest.raises(AssertionError, match=rf"learner 'Broken' raised ZeroDivisionError: oh no {place}$"):
        check(Subject("learner", "Broken", Broken, x_shape=(6,)))


def test_an_assertion_of_the_plugin_is_told_from_one_of_the_check() -> None:
    class Asserting(ToyLearner):
        """Has an assertion without a message."""

        def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
            raise AssertionError

    (check,) = [check for check in all_checks() if check.name == "no-leak"]
    with pytest.raises(AssertionError, match=r"learner 'Asserting' raised AssertionError: no message \(test_check"):
        check(Subject("learner", "Asserting", Asserting, x_shape=(6,)))


def test_the_line_of_a_plugin_is_the_innermost_of_its_package() -> None:
    def fail() -> None:
        raise ValueError("no")

    class Calling:
        """Calls the function that fails."""

        def run(self) -> None:
            exec(compile("fail()", "elsewhere.py", "exec"), {"fail": fail, "__name__": "elsewhere"})

    with pytest.raises(ValueError, match="no") as caught:
        Calling().run()
    line = plugin_line(caught.value, Calling)
    assert line is not None
    assert (line.file, line.is_innermost) == (__file__, True)
    assert plugin_line(caught.value, ToyLearner) is None
    other = type("Other", (), {"__module__": "elsewhere.part"})
    found = plugin_line(caught.value, other)
    assert found is not None
    assert (found.file, found.number, found.is_innermost) == ("elsewhere.py", 1, False)


def test_the_cause_of_a_failure_is_the_exception_and_its_line_or_the_message() -> None:
    subject = Subject.of(ToyDescent)
    assert cause_of(AssertionError("it has more"), subject) == "it has more"
    failure = AssertionError("it raised")
    failure.__cause__ = ValueError("from nowhere")
    assert cause_of(failure, subject) == "it raised"
