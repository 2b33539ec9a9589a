"""Settings: defaults and bounds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config_toys import PLAIN, with_values
from metaforge.config.resolve import resolve
from metaforge.config.settings import EngineConfig, RunConfig, TrainConfig
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry


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
