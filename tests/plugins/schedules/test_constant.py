"""A constant rate."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge_plugins.schedules.constant import Constant


def factors(steps: int = 8, **options: Any) -> list[float]:
    schedule = Constant(Constant.Config(**options))
    return [schedule.factor(step, step / steps) for step in range(steps)]


def test_the_rate_does_not_change() -> None:
    assert factors() == [1.0] * 8
    with pytest.raises(ValueError, match="floor"):
        factors(floor=0.1)
