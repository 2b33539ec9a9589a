"""Checks of schedules of the learning rate: pure functions, with finite factors."""

from __future__ import annotations

from metaforge.authoring.protocols import Schedule
from metaforge.runs.learning_rate import rate_factor
from metaforge.testing.check import check
from metaforge.testing.subject import Subject

LENGTH = 40
POINTS = [(step, step / LENGTH) for step in range(LENGTH + 1)]


@check("schedule")
def factors(subject: Subject) -> None:
    """Its factors are finite, at least 0 and not all 0, and depend only on the arguments."""
    schedule: Schedule = subject.build()
    forwards = [rate_factor(schedule, 0, *point) for point in POINTS]
    assert any(forwards[:LENGTH]), "all factors are 0, so nothing is learned"
    backwards = [rate_factor(schedule, 0, *point) for point in reversed(POINTS)]
    again = [rate_factor(subject.build(), 0, *point) for point in POINTS]
    assert forwards == backwards[::-1] == again, (
        "the factor of a step depends on earlier calls; compute it from `step` and `share`, so that a resumed run"
        " continues exactly"
    )


def _uses_share(subject: Subject) -> str:
    return "its factor may depend on the share of the run that is done" if subject.cls.uses_share else ""


@check("schedule", skip_reason=_uses_share)
def share(subject: Subject) -> None:
    """If `uses_share` is False, its factor does not depend on the share of the run that is done."""
    schedule: Schedule = subject.build()
    for step, _ in POINTS:
        found = {rate_factor(schedule, 0, step, done / LENGTH) for done in range(LENGTH + 1)}
        assert len(found) == 1, (
            f"the factor of step {step} depends on `share`, although `uses_share` is False; set it to True"
        )
