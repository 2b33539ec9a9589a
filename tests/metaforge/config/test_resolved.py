"""The resolved configuration: the written file alone reproduces it, and every value has an origin."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from config_toys import INNER_LOOP, PLAIN, Descent, with_values
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Choice, Resolved
from metaforge.config.sources import Layer, file_layer
from metaforge.errors import ConfigError, MetaForgeError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry


def round_trip(resolved: Resolved, registry: Registry, folder: Path) -> Resolved:
    path = folder / "config.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    return resolve([file_layer(path)], registry)


@pytest.mark.parametrize(
    "values",
    [
        {"learner": "plain", "dataset": "pictures"},
        {"learner": {"name": "plain", "floor": 0.5, "inner": {"scale": None}}, "dataset": "pictures"},
        {"learner": "inner-loop", "dataset": "pictures", "train": {"clip": None, "budget": "10m"}},
        {"learner": "inner-loop", "dataset": "pictures", "train": {"clip": "none"}, "regularizers": ["noise"]},
        {"learner": "inner-loop", "dataset": "waves", "adapters": {"rates": {"lr": 2}, "descent": {}}},
        {"learner": "inner-loop", "dataset": "waves", "evaluate": {"shots": [1, 5], "steps": [0, 1]}},
    ],
)
def test_the_written_file_alone_reproduces_the_configuration(
    registry: Registry, tmp_path: Path, values: dict[str, Any]
) -> None:
    resolved = resolve([with_values(**values)], registry)
    again = round_trip(resolved, registry, tmp_path)
    assert again == resolved
    assert again.to_dict() == resolved.to_dict()
    assert json.loads(json.dumps(resolved.to_dict())) == resolved.to_dict()


def test_every_value_has_an_origin(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP], registry)
    for path in ("seed", "evaluate.shots", "dataset.rotations", "backbone.channels", "adapters.descent.lr"):
        assert path in resolved.origins


def test_all_plugins_of_the_run_are_listed(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(regularizers=["noise"])], registry)
    assert [choice.name for choice in resolved.choices()] == ["inner-loop", "pictures", "conv", "descent", "noise"]
    assert [choice.name for choice in resolve([PLAIN], registry).choices()] == ["plain", "pictures"]


def test_an_ambiguous_plugin_has_its_qualified_name() -> None:
    entry = Entry("adapter", "x", "a:X", "zoo")
    assert Choice(entry, Descent, Descent.Config()).name == "x"
    assert Choice(replace(entry, state="ambiguous"), Descent, Descent.Config()).name == "zoo:x"


def test_a_plugin_is_instantiated_with_its_options(registry: Registry) -> None:
    class Keeping(Descent):
        def __init__(self, config: Any, *parts: Any, root: Any = None) -> None:
            self.values = (config.lr, parts, root)

    choice = Choice(Entry("adapter", "x", "a:X", "zoo"), Keeping, Keeping.Config(lr=0.5))
    assert choice.instantiate("part", root="folder").values == (0.5, ("part",), "folder")


@pytest.mark.parametrize("error", [ConfigError("the options do not fit"), ValueError("the options do not fit")])
def test_an_error_in_the_constructor_of_a_plugin_is_reported(error: Exception) -> None:
    class Failing(Descent):
        def __init__(self, config: Any) -> None:
            raise error

    choice = Choice(Entry("adapter", "x", "a:X", "zoo"), Failing, Failing.Config())
    with pytest.raises(MetaForgeError, match="the options do not fit") as caught:
        choice.instantiate()
    if isinstance(error, ConfigError):
        assert caught.value is error
    else:
        assert isinstance(caught.value, PluginError)
        assert "adapter 'x' of zoo cannot be built" in caught.value.what


def test_options_that_a_run_file_cannot_hold_are_reported() -> None:
    class Holding(Descent):
        class Config(Descent.Config):
            held: Any = Field(default_factory=object, description="An object.")

    choice = Choice(Entry("adapter", "x", "a:X", "zoo"), Holding, Holding.Config())
    with pytest.raises(PluginError, match=r"The adapter 'x' of zoo has options that a run file cannot hold: Pydantic"):
        choice.options()
    assert Choice(choice.entry, Descent, Descent.Config(lr=0.5)).options() == {"lr": 0.5}


def test_the_annotated_file_has_every_value_with_its_origin(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP], registry)
    text = resolved.to_annotated_toml()
    assert tomllib.loads(text) == tomllib.loads(resolved.to_toml())
    assert any(
        line.startswith("train.lr = 0.002 ") and line.endswith("# default of learner inner-loop")
        for line in text.splitlines()
    )


def test_a_group_that_a_later_layer_sets_again_keeps_its_place(registry: Registry) -> None:
    groups = {"a.*": {"lr": 0.1}, "b": {"min": 0.0}}
    layers = [with_values(train={"groups": table}) for table in (groups, {"c": {}, "a.*": {"lr": 0.2}})]
    resolved = resolve([PLAIN, *layers], registry)
    assert [(name, group.lr) for name, group in resolved.run.train.groups.items()] == [
        ("a.*", 0.2),
        ("b", None),
        ("c", None),
    ]


def test_groups_of_parameters_reproduce_the_run_from_its_file(registry: Registry) -> None:
    groups = {"a.*": {"lr": 0.1}, "b": {"min": 0.0}}
    resolved = resolve([PLAIN, with_values(train={"groups": groups})], registry)
    again = resolve([Layer("file", tomllib.loads(resolved.to_toml()))], registry)
    assert again == resolved
    assert list(again.run.train.groups) == ["a.*", "b"]
    annotated = resolve([Layer("file", tomllib.loads(resolved.to_annotated_toml()))], registry)
    assert annotated == resolved


def test_defaults_are_those_of_settings_and_options_alone(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(train={"lr": 0.3}, adapters={"descent": {"lr": 0.7}})], registry)
    found = resolved.defaults()
    assert found["train"]["lr"] == 1e-3
    assert found["adapters"] == {"descent": {"lr": 0.1}}
    assert "name" not in found["learner"]
