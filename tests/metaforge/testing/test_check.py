"""Tests of a single check: the decorator, and exceptions that become failures."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge.testing import Subject
from metaforge.testing.check import check
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
    with pytest.raises(AssertionError, match=r"learner 'Broken' raised ZeroDivisionError: oh no"):
        check(Subject("learner", "Broken", Broken, x_shape=(6,)))
