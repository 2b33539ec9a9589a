"""Errors for people: what a stranger chose is shown without control characters, and in bounds."""

from __future__ import annotations

from metaforge.errors import DataError, shown


def test_control_characters_do_not_reach_the_terminal() -> None:
    error = DataError("bad\x1b[2J\nsecond line", where="a\nError: all is fine", remedy="r\x07")
    assert str(error) == "bad [2J\nsecond line\n  where: a Error: all is fine\n  remedy: r "
    assert error.where == "a Error: all is fine"


def test_values_are_shown_in_bounds() -> None:
    assert shown("x") == "'x'"
    assert len(shown("x" * 10_000)) == 201
    assert shown([16**5000]) == "a number of too many digits"
