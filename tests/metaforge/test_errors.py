"""Errors: three parts, one exit code per class, no control characters, and bounded length."""

from __future__ import annotations

import errno
import signal

import pytest

from metaforge import errors
from metaforge.errors import (
    ConfigError,
    DataError,
    MetaForgeError,
    as_metaforge_error,
    exit_code,
    nearest,
    printable,
    shown,
)
from metaforge.system.signals import Interrupted


def test_control_characters_do_not_reach_the_terminal() -> None:
    error = DataError("bad\x1b[2J\nsecond line", where="a\nError: all is fine", remedy="r\x07")
    assert str(error) == "bad [2J\nsecond line\n  where: a Error: all is fine\n  remedy: r "
    assert error.where == "a Error: all is fine"
    assert printable("a\x1b\t\u2028b ä") == "a   b ä"


def test_empty_parts_are_left_out() -> None:
    assert str(ConfigError("wrong")) == "wrong"
    assert str(ConfigError("wrong", remedy="right")) == "wrong\n  remedy: right"


def test_a_long_place_is_cut() -> None:
    assert len(ConfigError("wrong", where="x" * 5000).where) == 1000


def test_every_class_has_its_own_exit_code() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, MetaForgeError)]
    assert sorted(cls.exit_code for cls in classes) == list(range(1, 10))
    for cls in set(classes) - {MetaForgeError}:
        assert f"(exit code {cls.exit_code})" in (cls.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 3),
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGTERM), 143),
        (OSError(errno.ENOSPC, "No space left", "x"), 8),
        (OSError(errno.ENOENT, "No such file", "x"), 1),
        (SystemExit(0), 4),
        (GeneratorExit(), 4),
        (ValueError("x"), 1),
    ],
)
def test_every_exception_has_an_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code
    known = as_metaforge_error(error)
    assert (None if known is None else known.exit_code) == (None if code in (1, 130, 143) else code)


def test_values_are_shown_in_bounds() -> None:
    assert shown("x") == "'x'"
    assert len(shown("x" * 10_000)) == 201
    assert shown([16**5000]) == "a number of too many digits"


@pytest.mark.parametrize(
    ("name", "hint"), [("lerner", " Did you mean 'learner'?"), ("learner", " Did you mean 'learner'?"), ("x", "")]
)
def test_the_nearest_name_is_suggested(name: str, hint: str) -> None:
    assert nearest(name, ["learner", "adapter"]) == hint
