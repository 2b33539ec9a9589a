"""Validation: every invalid value is named by its dotted path, and values that pydantic would misread are errors."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from config_toys import PLAIN, with_values
from metaforge.authoring.protocols import Options
from metaforge.config.resolve import resolve
from metaforge.config.sources import flags_layer
from metaforge.config.validation import check_bounds, validate
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"There is no setting 'trian'\. Did you mean 'train'\?"),
        ({"train": {"step": 3}}, r"There is no option 'train\.step'\. Did you mean 'steps'\?"),
        ({"learner": {"temprature": 1.0}}, r"'learner\.temprature'\. Did you mean 'temperature'\?"),
        ({"learner": {"inner": {"scal": 1.0}}}, r"'learner\.inner\.scal'\. Did you mean 'scale'\?"),
        ({"train": {"groups": {"a.*": {"lrr": 1.0}}}}, r"'train\.groups\.\"a\.\*\"\.lrr'\. Did you mean 'lr'\?"),
        ({"train": {"groups": {"a.*": {"lr": 0}}}}, r"train\.groups\.\"a\.\*\"\.lr is 0, but should be greater than 0"),
        ({"train": {"groups": {"a": {"min": 2, "max": 1}}}}, r"train\.groups\.a: min is 2 and must not be larger"),
        ({"train": {"lr": float("nan")}}, r"train\.lr is nan"),
        ({"train": {"lr": float("inf")}}, r"train\.lr is inf"),
        ({"learner": {"temperature": float("nan")}}, r"learner\.temperature is nan"),
        ({"train": {"steps": True}}, r"train\.steps is True, but should be a number"),
        ({"learner": {"layers": [8, True]}}, r"learner\.layers is True, but should be a number"),
        ({"learner": {"bias": 1}}, r"learner\.bias is 1, but should be true or false"),
        ({"train": {"steps": -1}}, r"train\.steps is -1"),
        ({"task": {"ways": 0}}, r"task\.ways is 0"),
        ({"evaluate": {"tasks": 0}}, r"evaluate\.tasks is 0"),
        ({"train": {"budget": "soon"}}, r"'soon' is not a duration"),
        ({"train": {"budget": 0}}, r"train\.budget is 0"),
        ({"train": 3}, r"train is 3"),
        ({"device": "gpu"}, r"device is 'gpu'"),
        ({"learner": 3}, "learner is 3, not a table"),
        ({"adapters": {"descent": 3}}, r"adapters\.descent is 3, not a table"),
        ({"adapters": 3}, "adapters is 3, not a table"),
        ({"learner": {"name": 3}}, r"learner\.name is 3"),
    ],
)
def test_invalid_values_are_named_by_dotted_path(registry: Registry, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve([PLAIN, with_values(**values)], registry)
    assert caught.value.remedy


def test_all_invalid_values_are_named_in_one_error(registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([PLAIN, with_values(train={"lr": -1, "steps": "many"})], registry)
    assert "train.lr" in caught.value.what
    assert "train.steps" in caught.value.what
    assert caught.value.where == "test"


class Numbers(Options):
    count: int = Field(1, description="A count.")
    rate: float = Field(0.5, description="A rate.")
    word: str = Field("x", description="A word.")
    limit: float | None = Field(2.0, description="An optional limit.")
    required: int = Field(description="A number without a default.")


def test_values_become_an_instance_of_the_model() -> None:
    result = validate(Numbers, {"count": 3, "limit": "none", "required": 1}, "adapters.x", {})
    assert (result.count, result.rate, result.limit) == (3, 0.5, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"x\.required is required"),
        ({"required": 2**63}, r"x\.required is 9223372036854775808, a number that is too large"),
        ({"required": 1, "rate": 1e39}, r"x\.rate is 1e\+39, a number that is too large"),
        ({"required": 1, "word": "a\x1b[2J"}, r"x\.word is 'a\\x1b\[2J', but should have no control characters"),
        ({"required": 1, "word": "none"}, None),
        ({"required": 1, "count": "none"}, r"x\.count is 'none'"),
    ],
)
def test_values_outside_the_bounds_are_named(values: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert validate(Numbers, values, "x", {}).word == "none"
        return
    with pytest.raises(ConfigError, match=message):
        validate(Numbers, values, "x", {})


def test_at_most_ten_errors_are_reported_with_the_origins_of_their_values() -> None:
    values = {f"wrong{number}": 1 for number in range(15)}
    origins = {f"x.wrong{number}": f"file {number % 2}" for number in range(15)}
    with pytest.raises(ConfigError) as caught:
        validate(Numbers, {**values, "required": 1}, "x", origins)
    lines = caught.value.what.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "There are 5 more errors."
    assert caught.value.where == "file 0, file 1"


def nested(depth: int) -> Any:
    return 1 if depth == 0 else [nested(depth - 1)]


def test_values_that_nest_too_deep_are_refused() -> None:
    check_bounds(nested(12), "run.toml")
    with pytest.raises(ConfigError, match="nest more than 12 levels deep") as caught:
        check_bounds({"a": nested(12)}, "run.toml")
    assert caught.value.where == "run.toml"


def test_an_integer_of_too_many_bits_is_refused() -> None:
    check_bounds({"a": [2**64 - 1, True]}, "run.toml")
    with pytest.raises(ConfigError, match=r"'a\.b' is an integer of 65 bits"):
        check_bounds({"a": {"b": 2**64}}, "run.toml")


@pytest.mark.parametrize(
    ("groups", "key"),
    [
        ({"model": {"2": {"*": {"lr": 0.1}}}}, '"model.2.*".lr'),
        ({"model": {"*": {"min": 0.1, "max": 1.0}}}, '"model.*".min'),
        ({"a.b": {"c": {"weight_decay": 0.0}}}, '"a.b.c".weight_decay'),
        ({"model": {"2": {"*": {"rate": 0.1}}}}, None),
        ({"model": {"2": {}}}, None),
        ({"model": {"rate": 0.1}}, None),
    ],
)
def test_a_pattern_whose_quotes_are_missing_is_shown_with_them(
    registry: Registry, groups: dict[str, Any], key: str | None
) -> None:
    with pytest.raises(ConfigError, match="There is no option") as caught:
        resolve([PLAIN, with_values(train={"groups": groups})], registry)
    if key is None:
        assert "quotes" not in caught.value.remedy
    else:
        assert f"in quotes: 'train.groups.{key}=VALUE' (the outer" in caught.value.remedy


def test_the_origin_of_an_unknown_table_is_that_of_a_value_in_it(registry: Registry) -> None:
    layer = flags_layer([("--set train.groups.a.b.lr", "train.groups.a.b.lr", 0.1)])
    with pytest.raises(ConfigError) as caught:
        resolve([PLAIN, layer], registry)
    assert caught.value.where == "--set train.groups.a.b.lr"
