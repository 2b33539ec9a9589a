"""The registry: names are resolved to entries, ambiguous and unknown ones are explained, classes are loaded once."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from distributions import ADAPTER, Install
from metaforge.authoring.protocols import Adapter, Options
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan


class Doubling(Adapter):
    """Doubles the gradient."""

    class Config(Options):
        pass

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


def test_load_imports_the_class_once(install: Install) -> None:
    install("mf-two", "[metaforge.adapters]\nmine = mf_two:Mine", ADAPTER)
    registry = scan()
    cls = registry.load("adapter", "mine")
    assert cls.__name__ == "Mine"
    assert registry.load("adapter", "mf-two:mine") is cls


def test_a_name_of_two_distributions_is_ambiguous_and_the_qualified_name_is_not(install: Install) -> None:
    install("mf-left", "[metaforge.adapters]\nmine = mf_left:Mine", ADAPTER)
    install("mf-right", "[metaforge.adapters]\nmine = mf_right:Mine", ADAPTER)
    registry = scan()
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [entry.state for entry in found] == ["ambiguous", "ambiguous"]
    assert "'mf-left:mine'" in found[0].reason
    assert "mine" not in registry.names("adapter")
    with pytest.raises(PluginError, match="ambiguous") as caught:
        registry.find("adapter", "mine")
    assert "'mf-left:mine', 'mf-right:mine'" in caught.value.remedy
    assert registry.find("adapter", "mf_right:mine").distribution == "mf-right"
    assert registry.load("adapter", "mf-left:mine") is not registry.load("adapter", "mf-right:mine")


def test_a_distribution_that_offers_a_name_twice_is_broken_and_does_not_affect_others(install: Install) -> None:
    install("mf-twice", "[metaforge.adapters]\nmine = mf_twice:Mine\nmine = mf_twice:Other", ADAPTER)
    registry = scan()
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [entry.state for entry in found] == ["broken", "broken"]
    assert found[0].reason == "mf-twice has several adapters of this name"
    with pytest.raises(PluginError, match="cannot be used: mf-twice has several"):
        registry.load("adapter", "mf-twice:mine")
    install("mf-once", "[metaforge.adapters]\nmine = mf_once:Mine", ADAPTER)
    assert scan().find("adapter", "mine").distribution == "mf-once"


def test_a_name_in_a_plugin_s_defaults_means_its_own_distribution_or_metaforge() -> None:
    ours, theirs = Entry("adapter", "x", "a:B", "metaforge"), Entry("adapter", "x", "c:D", "zoo")
    registry = Registry([ours, theirs, Entry("adapter", "y", "a:B", "zoo"), Entry("adapter", "y", "e:F", "circus")])
    assert registry.resolve_default(theirs, "adapter", "x") == "zoo:x"
    assert registry.resolve_default(ours, "adapter", "x") == "metaforge:x"
    assert registry.resolve_default(Entry("learner", "z", "g:H", "circus"), "adapter", "x") == "metaforge:x"
    assert registry.resolve_default(ours, "adapter", "y") == "y"
    assert registry.resolve_default(theirs, "adapter", "unheard-of") == "unheard-of"


def test_an_unknown_name_gets_the_nearest_one_and_a_remedy() -> None:
    registry = Registry([Entry("learner", "leopard", "a:B", "zoo"), Entry("adapter", "lion", "a:B", "zoo")])
    with pytest.raises(PluginError, match=r"No learner is called 'lepard'\. Did you mean 'leopard'\?") as caught:
        registry.find("learner", "lepard")
    assert sys.executable in caught.value.where
    assert "pip install" in caught.value.remedy
    with pytest.raises(PluginError, match="Another kind has it: adapter"):
        registry.find("learner", "lion")
    with pytest.raises(PluginError, match="'circus:leopard'"):
        registry.find("learner", "circus:leopard")
    error = registry.unknown_name_error("lin")
    assert str(error).startswith("No plugin is called 'lin'. Did you mean 'lion'?")
    assert "installed plugins: leopard, lion (interpreter" in error.where


def test_a_class_of_the_caller_s_replaces_the_installed_plugin_of_its_name() -> None:
    registry = Registry([Entry("adapter", "doubling", "a:B", "zoo")])
    extended = registry.with_plugin("adapter", "doubling", Doubling)
    assert extended.load("adapter", "doubling") is Doubling
    assert extended.find("adapter", "doubling").summary == "Doubles the gradient."
    assert registry.find("adapter", "doubling").distribution == "zoo"


def test_entries_are_sorted_and_names_are_those_that_can_be_used() -> None:
    registry = Registry(
        [
            Entry("adapter", "b", "x:B", "zoo"),
            Entry("learner", "z", "x:Z", "zoo"),
            Entry("adapter", "a", "x:A", "zoo"),
            Entry("adapter", "a", "y:A", "circus"),
            Entry("adapter", "c", "x:C", "zoo", state="hidden", reason="it is hidden"),
        ]
    )
    assert [entry.qualified for entry in registry.entries()] == ["zoo:z", "circus:a", "zoo:a", "zoo:b", "zoo:c"]
    assert registry.names("adapter") == ["b", "circus:a", "zoo:a"]
    assert registry.names("hook") == []


def test_a_recorded_distribution_settles_an_ambiguous_name() -> None:
    registry = Registry([Entry("adapter", "x", "a:X", "circus"), Entry("adapter", "x", "b:X", "zoo")], notes=["a note"])
    recorded = registry.as_recorded({"adapter x": "zoo 1.0"})
    assert recorded.find("adapter", "x").distribution == "zoo"
    assert recorded.notes == ("a note",)
    assert registry.as_recorded({"adapter x": "gone 1.0", "learner x": "zoo 1.0"}).entries() == registry.entries()
    assert registry.as_recorded({"adapter x": 3}).entries() == registry.entries()


def test_a_recorded_distribution_is_not_replaced_by_another() -> None:
    registry = Registry([Entry("adapter", "x", "b:X", "Zoo_Two"), Entry("adapter", "y", "b:Y", "zoo")])
    assert registry.as_recorded({"adapter x": "zoo-two 1.0"}).find("adapter", "x").state == "ready"
    with pytest.raises(PluginError, match=r"The adapter 'x' of circus 1\.0, .* is not installed") as caught:
        registry.as_recorded({"adapter x": "circus 1.0"}).find("adapter", "x")
    assert "pip install circus==1.0), or write 'Zoo_Two:x'" in caught.value.remedy
    assert registry.as_recorded({"adapter x": "circus 1.0"}).find("adapter", "Zoo_Two:x").state == "ambiguous"
    with pytest.raises(PluginError, match=r"The adapter 'circus:x' of circus 1\.0, .* is not installed"):
        registry.as_recorded({"adapter circus:x": "circus 1.0"}).find("adapter", "circus:x")
    # A class of the caller's is used on purpose.
    own = registry.with_plugin("adapter", "x", Doubling).as_recorded({"adapter x": "circus 1.0"})
    assert own.find("adapter", "x").distribution == "python"


def test_a_name_that_a_run_recorded_as_qualified_stays_qualified() -> None:
    recorded = Registry([Entry("adapter", "x", "b:X", "zoo")]).as_recorded({"adapter zoo:x": "zoo 1.0"})
    assert recorded.names("adapter") == ["zoo:x"]
    assert recorded.find("adapter", "x") == recorded.find("adapter", "zoo:x")


@pytest.mark.parametrize(
    ("text", "kind", "qualified"),
    [
        ("lion", None, "zoo:lion"),
        ("adapter:bear", None, "circus:bear"),
        ("bear", "learner", "zoo:bear"),
        ("circus:bear", "adapter", "circus:bear"),
        ("adapter:circus:bear", None, "circus:bear"),
    ],
)
def test_a_plugin_is_found_without_its_kind(text: str, kind: str | None, qualified: str) -> None:
    entries = [Entry("learner", "lion", "a:L", "zoo"), Entry("learner", "bear", "a:B", "zoo")]
    registry = Registry([*entries, Entry("adapter", "bear", "b:B", "circus")])
    assert registry.find_any(text, kind).qualified == qualified


def test_a_name_of_two_kinds_needs_the_kind() -> None:
    registry = Registry([Entry("learner", "bear", "a:B", "zoo"), Entry("adapter", "bear", "b:B", "zoo")])
    with pytest.raises(ConfigError, match="'bear' is the name of learner and adapter plugins") as caught:
        registry.find_any("bear")
    assert "learner:bear" in caught.value.remedy
    with pytest.raises(PluginError, match="No plugin is called 'wolf'"):
        registry.find_any("wolf")
    with pytest.raises(PluginError, match="No adapter is called 'wolf'"):
        registry.find_any("adapter:wolf")


def test_the_default_is_a_plugin_of_metaforge() -> None:
    ours, theirs = Entry("hook", "bar", "a:Bar", "metaforge"), Entry("hook", "bar", "a:Bar", "zoo")
    registry = Registry([ours, theirs], {"hook": "a:Bar", "regression": "a:Absent"})
    default = registry.default("hook")
    assert default is not None
    assert default.distribution == "metaforge"
    assert registry.default("regression") is None
    assert registry.default("classification") is None
