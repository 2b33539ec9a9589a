"""Which checks there are, which of them apply to a subject, and how a test function runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from metaforge.errors import ConfigError, nearest
from metaforge.testing.check import Check
from metaforge.testing.checks import components, datasets, general, gradients, hooks, learners
from metaforge.testing.subject import Subject

_MODULES = (general, learners, gradients, components, datasets, hooks)


def all_checks() -> list[Check]:
    """Return every check there is."""
    return [value for module in _MODULES for value in vars(module).values() if isinstance(value, Check)]


def checks_for(subject: Subject) -> list[Check]:
    """Return the checks that apply to a subject."""
    return [check for check in all_checks() if subject.kind in check.kinds and not check.reason(subject)]


def skipped_for(subject: Subject) -> list[tuple[Check, str]]:
    """Return the checks of the subject's kind that do not apply to it, each with the reason."""
    found = [(check, check.reason(subject)) for check in all_checks() if subject.kind in check.kinds]
    return [(check, reason) for check, reason in found if reason]


def parametrize_with_checks(
    subjects: Sequence[Subject | str | type[Any]],
    *,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a pytest decorator for a test of `subject` and `check`: one case for each check of each subject.

    `expected_failures` gives the reason for each check that is known to fail; with `strict` such a check must fail.
    Raises `ConfigError` for a name that is no check of a subject, `PluginError` for a plugin that cannot be loaded.
    """
    import pytest

    cases = []
    for subject in map(Subject.of, subjects):
        checks = checks_for(subject)
        expected = known(subject, checks, expected_failures or {})
        for check in checks:
            reason = expected.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=strict, raises=AssertionError)]
            cases.append(pytest.param(subject, check, id=f"{subject.name}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), cases)


def known(subject: Subject, checks: Sequence[Check], expected: Mapping[str, str]) -> Mapping[str, str]:
    """Return the expected failures; raise `ConfigError` for one that is no check of the subject, or has no reason."""
    names = [check.name for check in checks]
    for name, reason in expected.items():
        if name not in names:
            raise ConfigError(
                f"{name!r} is no check of the {subject.label}.{nearest(name, names)}",
                where="expected failures",
                remedy=f"its checks are {', '.join(names)}",
            )
        if not reason.strip():
            raise ConfigError(f"The expected failure {name!r} has no reason.", remedy="say why it may fail")
    return expected


class Outcome(NamedTuple):
    """What came of a check: its status and, unless it is ok, a sentence: the failure, or the reason."""

    check: Check
    status: Literal["ok", "failed", "expected", "skipped"]
    said: str = ""


def outcomes(subject: Subject, expected: Mapping[str, str]) -> Iterator[Outcome]:
    """Run every check that applies to a subject and yield what came of it, then what does not apply and why.

    An expected failure that does not fail counts as failed: its reason has gone. Raises as `known` does.
    """
    checks = checks_for(subject)
    reasons = known(subject, checks, expected)
    for check in checks:
        said = _failure(check, subject)
        if check.name not in reasons:
            yield Outcome(check, "failed", said) if said else Outcome(check, "ok")
        elif said:
            yield Outcome(check, "expected", reasons[check.name])
        else:
            yield Outcome(check, "failed", f"it passes, though a failure is expected: {reasons[check.name]}")
    for check, reason in skipped_for(subject):
        yield Outcome(check, "skipped", reason)


def counts(found: Sequence[Outcome]) -> dict[str, int]:
    """Return how many checks were run, how many failed, how many did so as expected, and how many did not apply."""
    number = Counter(outcome.status for outcome in found)
    return {
        "run": len(found) - number["skipped"],
        "failed": number["failed"],
        "expected failures": number["expected"],
        "not applicable": number["skipped"],
    }


def _failure(check: Check, subject: Subject) -> str:
    try:
        check(subject)
    except AssertionError as error:
        return str(error) or "the check fails without a word"
    return ""
