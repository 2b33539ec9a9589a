"""Selects the checks that apply to a subject, and runs them with pytest or one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from metaforge.errors import ConfigError, nearest
from metaforge.testing.check import Check, Skipped, cause_of
from metaforge.testing.checks import (
    adapters,
    backbones,
    classes,
    datasets,
    general,
    gradients,
    hooks,
    learners,
    optimizers,
    regularizers,
    schedules,
    tasks,
    training,
)
from metaforge.testing.subject import Subject

_MODULES = (
    general,
    learners,
    gradients,
    training,
    adapters,
    regularizers,
    backbones,
    datasets,
    classes,
    tasks,
    optimizers,
    schedules,
    hooks,
)


def all_checks() -> list[Check]:
    """Return all checks of the kit."""
    return [value for module in _MODULES for value in vars(module).values() if isinstance(value, Check)]


def checks_for(subject: Subject) -> list[Check]:
    """Return the checks that apply to a subject.

    Args:
        subject: The plugin to check.

    Returns:
        The checks of its kind, except those that its class attributes exclude (see `skipped_for`).

    Example:
        >>> from metaforge.testing import Subject, checks_for
        >>> from metaforge.testing.toy import ToyClasses
        >>> "labels" in [check.name for check in checks_for(Subject.of(ToyClasses))]
        True
    """
    return [check for check in all_checks() if subject.kind in check.kinds and not check.skip_reason(subject)]


def skipped_for(subject: Subject) -> list[tuple[Check, str]]:
    """Return the checks of a subject's kind that do not apply to it.

    Args:
        subject: The plugin to check.

    Returns:
        Pairs of a check and the reason why it does not apply.

    Example:
        >>> from metaforge.testing import Subject, skipped_for
        >>> from metaforge.testing.toy import ToyCurves
        >>> [(check.name, reason) for check, reason in skipped_for(Subject.of(ToyCurves)) if check.name == "labels"]
        [('labels', 'its tasks are regression tasks, which have no labels')]
    """
    pairs = [(check, check.skip_reason(subject)) for check in all_checks() if subject.kind in check.kinds]
    return [(check, reason) for check, reason in pairs if reason]


def parametrize_with_checks(
    subjects: Sequence[Subject | str | type[Any]],
    *,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a pytest decorator that parametrizes a test over `subject` and `check`, one case per check and subject.

    Args:
        subjects: Plugins: subjects, names such as `my-idea` or `learner:my-idea`, or classes.
        expected_failures: The reason for each check that is known to fail, by the name of the check. These cases are
            marked as `xfail`.
        strict: Whether an expected failure that passes is an error.

    Returns:
        The decorator.

    Raises:
        ConfigError: A name in `expected_failures` is not a check that applies to each subject, or has no reason.
        PluginError: A plugin cannot be found or loaded.

    Example:
        >>> from metaforge.testing import Check, Subject, parametrize_with_checks
        >>> from metaforge.testing.toy import ToyDescent
        >>> @parametrize_with_checks([ToyDescent])
        ... def test_my_adapter(subject: Subject, check: Check) -> None:
        ...     check(subject)
    """
    import pytest

    cases = []
    for subject in map(Subject.of, subjects):
        checks = checks_for(subject)
        expected = expected_failures or {}
        validate_expected_failures(subject, checks, expected)
        for check in checks:
            reason = expected.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=strict, raises=AssertionError)]
            cases.append(pytest.param(subject, check, id=f"{subject.name}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), cases)


def validate_expected_failures(subject: Subject, checks: Sequence[Check], expected: Mapping[str, str]) -> None:
    """Raise `ConfigError` for an expected failure that is not among the subject's checks, or has no reason."""
    names = [check.name for check in checks]
    for name, reason in expected.items():
        if name not in names:
            raise ConfigError(
                f"{name!r} is not a check of the {subject.label}.{nearest(name, names)}",
                where="expected failures",
                remedy=f"its checks are {', '.join(names)}",
            )
        if not reason.strip():
            raise ConfigError(f"The expected failure {name!r} has no reason.", remedy="state why it may fail")


class Outcome(NamedTuple):
    """The result of one check.

    Attributes:
        check: The check.
        status: Its result.
        message: Empty if the check passed, the failure if it failed, and otherwise the reason why a failure is expected
            or why the check was skipped.
        cause: Of a failure: equal for all checks that failed because of the same exception from the same line.
    """

    check: Check
    status: Literal["ok", "failed", "expected", "skipped"]
    message: str = ""
    cause: str = ""


def check_plugin(
    plugin: Subject | str | type[Any],
    *,
    options: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run all checks that apply to a plugin, as `metaforge check` does.

    Args:
        plugin: The plugin, as `Subject.of` takes it.
        options: Options of the plugin that differ from the defaults.
        expected_failures: The reason for each check that is known to fail, by the name of the check.

    Returns:
        The outcome of each check. No failure is raised: `outcome.status` is `"failed"`.

    Raises:
        ConfigError: An option is invalid, or an expected failure is not a check of the plugin or has no reason.
        PluginError: The plugin cannot be found or loaded.

    Example:
        >>> from metaforge.testing import check_plugin
        >>> from metaforge.testing.toy import ToyClasses
        >>> outcomes = check_plugin(ToyClasses, options={"x_shape": [3]})
        >>> [outcome.check.name for outcome in outcomes if outcome.status == "failed"]
        []
    """
    return list(run_checks(Subject.of(plugin, options=options), expected_failures or {}))


def run_checks(subject: Subject, expected: Mapping[str, str]) -> Iterator[Outcome]:
    """Run all checks that apply to a subject and yield the outcome of each, then those that do not apply.

    Args:
        subject: The plugin to check.
        expected: The reason for each check that is known to fail. Such a check counts as failed if it passes.

    Raises:
        ConfigError: An expected failure is not a check of the subject, or has no reason.
    """
    checks = checks_for(subject)
    validate_expected_failures(subject, checks, expected)
    for check in checks:
        outcome = _outcome(check, subject)
        reason = expected.get(check.name)
        if reason is not None and outcome.status == "failed":
            outcome = Outcome(check, "expected", reason)
        elif reason is not None and outcome.status == "ok":
            outcome = Outcome(check, "failed", f"it passes, but is expected to fail: {reason}")
        yield outcome
    for check, reason in skipped_for(subject):
        yield Outcome(check, "skipped", reason)


def by_cause(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the failures among some outcomes in groups of the same cause, in the order of the first of each group."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            groups.setdefault(outcome.cause or outcome.message, []).append(outcome)
    return list(groups.values())


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many checks were run, failed, failed as expected, and did not apply."""
    number = Counter(outcome.status for outcome in outcomes)
    return {
        "run": len(outcomes) - number["skipped"],
        "failed": number["failed"],
        "expected failures": number["expected"],
        "not applicable": number["skipped"],
    }


def _outcome(check: Check, subject: Subject) -> Outcome:
    """Return the outcome of a check, whether or not a failure is expected."""
    try:
        check(subject)
    except Skipped as reason:
        return Outcome(check, "skipped", str(reason))
    except AssertionError as error:
        return Outcome(check, "failed", str(error) or "the check failed without a message", cause_of(error, subject))
    return Outcome(check, "ok")
