"""What a check is: a name, a sentence, the kinds of plugins that it is for, and when it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from metaforge.testing.subject import Subject

Run = Callable[[Subject], None]
Reason = Callable[[Subject], str]


def always(subject: Subject) -> str:
    """Return that nothing speaks against a check."""
    return ""


@dataclass(frozen=True)
class Check:
    """One property that a plugin must have; calling it with a subject raises `AssertionError` where it has not.

    `text` says in one sentence what is asked; `reason` says why the check does not apply to a subject, or nothing.
    """

    name: str
    kinds: frozenset[str]
    text: str
    run: Run = field(repr=False)
    reason: Reason = field(default=always, repr=False)

    def __call__(self, subject: Subject) -> None:
        """Check a subject; whatever else it raises becomes an `AssertionError` that says so."""
        try:
            self.run(subject)
        except AssertionError:
            raise
        except Exception as error:
            said = str(error).strip() or "no message"
            raise AssertionError(f"{subject.label} raised {type(error).__name__}: {said}") from error


def check(*kinds: str, name: str = "", unless: Reason = always) -> Callable[[Run], Check]:
    """Return a decorator that makes a function a check for plugins of these kinds.

    Its docstring is the sentence that a person reads, its name with dashes the check's name if none is given. `unless`
    returns the reason for which the check does not apply to a subject, or an empty string.
    """

    def made(run: Run) -> Check:
        text = (run.__doc__ or "").strip()
        return Check(name or run.__name__.replace("_", "-"), frozenset(kinds), text, run, unless)

    return made
