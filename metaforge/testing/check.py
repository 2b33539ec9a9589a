"""What a check of the conformance kit is, and the decorator that makes one of a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from metaforge.testing.subject import Subject

Run = Callable[[Subject], None]
SkipReason = Callable[[Subject], str]


def never_skipped(subject: Subject) -> str:
    """Return an empty reason: the check applies to every subject."""
    return ""


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
        except (AssertionError, KeyboardInterrupt):
            raise
        except BaseException as error:
            # `SystemExit` too: a plugin must not end the command.
            message = str(error).strip() or "no message"
            raise AssertionError(f"{subject.label} raised {type(error).__name__}: {message}") from error


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
