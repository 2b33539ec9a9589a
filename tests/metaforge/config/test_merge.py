"""Merging: a higher layer wins value by value, sets are replaced, and every value keeps its origin."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge.config.merge import Merged
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError


def merge(*layers: Layer) -> Merged:
    """Return these layers merged, from the lowest to the highest."""
    merged = Merged()
    for layer in layers:
        merged.apply(layer)
    return merged


def default(**values: Any) -> Layer:
    return Layer("default", values, explicit=False)


def test_tables_are_merged_value_by_value() -> None:
    merged = merge(default(train={"lr": 0.1, "steps": 3}), Layer("file", {"train": {"lr": 0.2}, "seed": 1}))
    assert merged.values == {"train": {"lr": 0.2, "steps": 3}, "seed": 1}
    assert merged.origins == {"train.lr": "file", "train.steps": "default", "seed": "file"}
    assert merged.explicit == {"train": "file", "seed": "file"}
    assert merged.default_paths == {"train.steps"}


def test_the_layers_themselves_stay_unchanged() -> None:
    low, high = default(train={"lr": 0.1}, adapters={"a": {"x": 1}}), Layer("file", {"train": {"lr": 0.2}})
    merge(low, high, Layer("flags", {}, patches={"adapters": {"a": {"x": 2}}}))
    assert low.values == {"train": {"lr": 0.1}, "adapters": {"a": {"x": 1}}}
    assert high.values == {"train": {"lr": 0.2}}


def test_another_plugin_drops_explicit_options_with_a_note_and_default_ones_without() -> None:
    high = Layer("flags", {"backbone": {"name": "b"}}, origins={"backbone.name": "--backbone"})
    merged = merge(Layer("file", {"backbone": {"name": "a", "width": 3}}), high)
    assert merged.values == {"backbone": {"name": "b"}}
    assert merged.origins == {"backbone.name": "--backbone"}
    assert merged.notes == ["backbone is 'b' by --backbone: options for 'a' are dropped (width)"]
    assert merge(default(backbone={"name": "a", "width": 3}), high).notes == []
    assert merge(Layer("file", {"backbone": {"name": "a"}}), high).notes == []


def test_explicit_options_without_a_name_are_for_the_plugin_that_is_named_later() -> None:
    high = Layer("flags", {"backbone": {"name": "b"}})
    assert merge(Layer("file", {"backbone": {"width": 3}}), high).values == {"backbone": {"name": "b", "width": 3}}
    assert merge(default(backbone={"width": 3}), high).values == {"backbone": {"name": "b"}}


def test_a_set_replaces_the_lower_one_in_its_own_order() -> None:
    merged = merge(default(adapters={"a": {"x": 1}, "b": {"y": 2}}), Layer("file", {"adapters": {"c": {}, "a": {}}}))
    assert list(merged.values["adapters"].items()) == [("c", {}), ("a", {"x": 1})]
    assert merged.origins == {
        "adapters": "file",
        "adapters.c": "file",
        "adapters.a": "file",
        "adapters.a.x": "default",
    }


def test_a_patch_changes_options_and_not_the_set() -> None:
    patch = Layer("flags", patches={"adapters": {"a": {"x": 3}}}, origins={"adapters.a.x": "--set adapters.a.x"})
    merged = merge(default(adapters={"a": {"x": 1}, "b": {}}), patch)
    assert merged.values == {"adapters": {"a": {"x": 3}, "b": {}}}
    assert merged.origins["adapters.a.x"] == "--set adapters.a.x"
    assert merged.explicit == {"adapters": "--set adapters.a.x"}


def test_a_patch_of_a_plugin_that_is_not_chosen_is_refused() -> None:
    patch = Layer("flags", patches={"adapters": {"aa": {"x": 3}}}, origins={"adapters.aa.x": "--set adapters.aa.x"})
    with pytest.raises(ConfigError, match=r"adapters\.aa is not among the adapters of this run.*'ab'") as caught:
        merge(default(adapters={"ab": {}}), patch)
    assert caught.value.where == "--set adapters.aa.x (chosen: ab)"
    assert "--adapter aa" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        merge(patch)
    assert caught.value.where == "--set adapters.aa.x (chosen: none)"
