"""Durations: which texts are one, and how many seconds."""

from __future__ import annotations

from typing import Any

import pytest

from config_toys import PLAIN, with_values
from metaforge.config.durations import seconds
from metaforge.config.resolve import resolve
from metaforge.registry.registry import Registry


@pytest.mark.parametrize(
    ("text", "value"),
    [("10m", 600.0), ("90s", 90.0), ("1h", 3600.0), ("1h30m", 5400.0), ("45", 45.0), (12, 12.0), (0.5, 0.5)],
)
def test_a_budget_is_a_duration(registry: Registry, text: Any, value: float) -> None:
    assert resolve([PLAIN, with_values(train={"budget": text})], registry).run.train.budget == value


@pytest.mark.parametrize("text", ["", "  ", "soon", "10 m", "1m1h", "-3s", "1d"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 90s, 10m or 1h30m"):
        seconds(text)


def test_a_duration_is_read_without_case_and_other_types_pass() -> None:
    assert seconds(" 1H 30M ".replace(" ", "")) == 5400.0
    assert seconds(None) is None
    assert seconds([1]) == [1]
