"""The protocols of outer optimisers and schedules: their defaults."""

from __future__ import annotations

import pytest

from metaforge.authoring import Optimizer, Options, Schedule
from metaforge.registry.contract import contract_errors


def test_by_default_there_is_no_weight_decay_and_a_schedule_may_use_the_share() -> None:
    assert Optimizer.weight_decay == 0.0
    assert Schedule.uses_share


@pytest.mark.parametrize(
    ("kind", "base", "attributes", "error"),
    [
        ("optimizer", Optimizer, {}, "'build' is missing"),
        ("schedule", Schedule, {}, "'factor' is missing"),
        ("optimizer", Optimizer, {"weight_decay": -1.0}, "'weight_decay' is not a finite number"),
        ("optimizer", Optimizer, {"weight_decay": True}, "'weight_decay' is not a finite number"),
        ("schedule", Schedule, {"uses_share": None}, "'uses_share' is not True or False"),
        ("schedule", Schedule, {"factor": lambda self, epoch, share: 1.0}, "factor(self, epoch, share) should begin"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, base: type, attributes: dict[str, object], error: str) -> None:
    cls = type("Own", (base,), {"Config": Options, **attributes})
    assert any(error in found for found in contract_errors(kind, cls))
