"""Settings: durations, defaults and bounds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config_toys import PLAIN, with_values
from metaforge.config.resolve import resolve
from metaforge.config.settings import EngineConfig, RunConfig, TrainConfig, seconds
from metaforge.errors import ConfigError
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


def test_patterns_of_initial_values_need_a_run(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"train\.init_patterns: there is no run to take values from"):
        resolve([PLAIN, with_values(train={"init_patterns": ["model.*"]})], registry)
    run = resolve([PLAIN, with_values(train={"init_patterns": ["model.*"], "init_from": "runs/x"})], registry).run
    assert run.train.init_patterns == ["model.*"]


@pytest.mark.parametrize(
    "values", [{"lr": float("nan")}, {"lr": float("inf")}, {"rate": 1}, {"clip": 0}, {"skip_limit": 10**6}]
)
def test_sections_refuse_unknown_keys_and_numbers_out_of_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**values)


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the fields of a model and of the models in it, by dotted path."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        found[f"{prefix}{name}"] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize(("path", "field"), fields(RunConfig).items())
def test_every_setting_has_a_default_and_a_description(path: str, field: Any) -> None:
    assert not field.is_required(), path
    assert field.description[0].isupper(), path
    assert field.description.endswith("."), path


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**6])
def test_an_absurd_number_of_threads_is_refused(threads: int) -> None:
    assert EngineConfig(threads=1024).threads == 1024
    with pytest.raises(ValidationError):
        EngineConfig(threads=threads)
