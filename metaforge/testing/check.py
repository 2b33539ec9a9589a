"""What a check of the conformance kit is, and the decorator that makes one of a function."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metaforge.testing.subject import Subject

Run = Callable[[Subject], None]
SkipReason = Callable[[Subject], str]


def never_skipped(subject: Subject) -> str:
    """Return an empty reason: the check applies to every subject."""
    return ""


class Skipped(unittest.SkipTest):
    """Raised by a check that finds, while it runs, that it cannot judge a subject; its message says why.

    pytest reports the test case as skipped, as it does for every `unittest.SkipTest`.
    """


@dataclass(frozen=True)
class Check:
    """One property that plugins of some kinds must have. Calling it with a subject tests the property.

    Args:
        name: Name of the check, as `metaforge check` prints it.
        kinds: Kinds of plugins that it applies to.
        text: The property, in one sentence.
        run: Tests the property of a subject and raises `AssertionError` if it does not hold.
        skip_reason: Returns why the check does not apply to a subject, or an empty string if it applies.

    Raises:
        AssertionError: On a call, if the subject does not have the property or raises any other exception. The message
            says what was expected, what was found and what to do.
        Skipped: On a call, if the subject cannot be judged.

    Example:
        >>> from metaforge.testing import Subject, checks_for
        >>> from metaforge.testing.toy import ToyDescent
        >>> subject = Subject.of(ToyDescent)
        >>> check = next(check for check in checks_for(subject) if check.name == "updates")
        >>> sorted(check.kinds)
        ['adapter']
        >>> check(subject)
    """

    name: str
    kinds: frozenset[str]
    text: str
    run: Run = field(repr=False)
    skip_reason: SkipReason = field(default=never_skipped, repr=False)

    def __call__(self, subject: Subject) -> None:
        """Test the property; raise `AssertionError` if the subject does not have it or raises another exception."""
        try:
            self.run(subject)
        except (Skipped, KeyboardInterrupt):
            raise
        except BaseException as error:
            # `SystemExit` too: a plugin must not end the command.
            line = plugin_line(error, subject.cls)
            by_check = line is None or not line.is_innermost
            if isinstance(error, AssertionError) and by_check:
                raise
            message = str(error).strip() or "no message"
            place = f" ({Path(line.file).name}, line {line.number})" if line is not None else ""
            raise AssertionError(f"{subject.label} raised {type(error).__name__}: {message}{place}") from error


class Line(NamedTuple):
    """A line of a plugin's code through which an exception passed.

    Attributes:
        file: The path of the file.
        number: The number of the line.
        is_innermost: Whether the line raised the exception, and called no other code that did.
    """

    file: str
    number: int
    is_innermost: bool


def plugin_line(error: BaseException, cls: type[Any]) -> Line | None:
    """Return the innermost line of a plugin's code in the traceback of an exception, or None if there is none.

    Args:
        error: The exception.
        cls: The class of the plugin. Its code is its package, or its module if MetaForge itself has it.
    """
    package = cls.__module__ if cls.__module__.startswith("metaforge.") else cls.__module__.partition(".")[0]
    found, trace = None, error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if f"{module}.".startswith(f"{package}."):
            found = Line(trace.tb_frame.f_code.co_filename, trace.tb_lineno, is_innermost=trace.tb_next is None)
        trace = trace.tb_next
    return found


def cause_of(failure: AssertionError, subject: Subject) -> str:
    """Return what failures of several checks have in common: the exception of the plugin and its line, or the message.

    Args:
        failure: What a check has raised.
        subject: The plugin that was checked.
    """
    error = failure.__cause__
    line = None if error is None else plugin_line(error, subject.cls)
    return str(failure) if line is None else f"{type(error).__name__} at {line.file}:{line.number}"


def check(*kinds: str, name: str = "", skip_reason: SkipReason = never_skipped) -> Callable[[Run], Check]:
    """Return a decorator that turns a function into a `Check`, whose `text` is the function's docstring.

    Args:
        *kinds: Kinds of plugins that the check applies to.
        name: Name of the check; by default the function's name with dashes instead of underscores.
        skip_reason: Returns why the check does not apply to a subject, or an empty string if it applies.
    """

    def decorator(run: Run) -> Check:
        text = (run.__doc__ or "").strip()
        return Check(name or run.__name__.replace("_", "-"), frozenset(kinds), text, run, skip_reason)

    return decorator
