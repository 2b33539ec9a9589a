"""Groups of parameters by name pattern: the last pattern that matches applies, and one without effect is an error."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge.config.settings import GroupConfig, TrainConfig
from metaforge.errors import ConfigError
from metaforge.runs.parameter_groups import ParameterGroup, parameter_groups

NAMES = ["model.0.weight", "model.0.bias", "adapters.sgd.rate.w", "head"]


def groups(weight_decay: float | None = None, **patterns: Any) -> list[ParameterGroup]:
    tables = {name.replace("_", "*"): GroupConfig(**table) for name, table in patterns.items()}
    return parameter_groups(TrainConfig(lr=0.1, weight_decay=weight_decay, groups=tables), NAMES, 0.01)


def test_without_patterns_there_is_one_group() -> None:
    assert groups() == [ParameterGroup(tuple(NAMES), 0.1, 0.01)]
    assert groups(0.0) == [ParameterGroup(tuple(NAMES), 0.1, 0.0)]


def test_a_group_has_the_common_settings_where_it_has_none() -> None:
    rest, own = groups(adapters_={"lr": 0.5, "min": 0.0})
    assert rest == ParameterGroup(("model.0.weight", "model.0.bias", "head"), 0.1, 0.01)
    assert own == ParameterGroup(("adapters.sgd.rate.w",), 0.5, 0.01, min=0.0)


def test_the_last_pattern_that_matches_applies_alone() -> None:
    first, second = groups(_={"lr": 0.5}, model_={"weight_decay": 0.2})
    assert first == ParameterGroup(("adapters.sgd.rate.w", "head"), 0.5, 0.01)
    assert second == ParameterGroup(("model.0.weight", "model.0.bias"), 0.1, 0.2)


def test_a_pattern_that_applies_to_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"The pattern 'modle\*' applies to nothing: no parameter") as caught:
        groups(modle_={})
    assert caught.value.where == "train.groups.modle*"
    assert "model.0.weight, model.0.bias" in caught.value.remedy
    with pytest.raises(ConfigError, match="'head' applies to nothing: later patterns match all"):
        groups(head={}, _={})
    many = [f"w{index}" for index in range(25)]
    with pytest.raises(ConfigError) as caught:
        parameter_groups(TrainConfig(groups={"x.*": GroupConfig()}), many, 0.0)
    assert "w19 and 5 more" in caught.value.remedy
    assert caught.value.where == 'train.groups."x.*"'


def test_a_pattern_of_frozen_values_says_so() -> None:
    config = TrainConfig(groups={"body.*": GroupConfig(lr=0.5)})
    with pytest.raises(ConfigError, match=r"The pattern 'body.\*' applies to nothing: all that it matches is frozen"):
        parameter_groups(config, NAMES, 0.0, frozen=["body.w"])
    with pytest.raises(ConfigError, match="no parameter has such a name"):
        parameter_groups(config, NAMES, 0.0, frozen=["bodies.w"])
