"""`NAME:VALUE`: which texts are parted, what they set, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field
from torch import nn

from config_toys import config_of, with_values
from metaforge.authoring.protocols import Backbone, Options, TaskSpec
from metaforge.config.after_colon import parted
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer, flags_layer
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry


class Zoo(Backbone):
    """A backbone with an option for after the colon."""

    class Config(Options):
        after_colon: ClassVar[str] = "model"

        model: str | int = Field("small", description="name of the network")
        width: int = Field(8, ge=1, description="units")

    def __init__(self, config: Any) -> None: ...
    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Identity()


@pytest.fixture
def zoo(registry: Registry) -> Registry:
    """Return the toy plugins with the backbone `zoo`."""
    return registry.with_plugin("backbone", "zoo", Zoo)


def options(registry: Registry, *layers: Layer) -> dict[str, Any]:
    resolved = resolve([with_values(learner="inner-loop", dataset="pictures"), *layers], registry)
    assert resolved.backbone is not None
    return {"name": resolved.backbone.name, **config_of(resolved.backbone)}


@pytest.mark.parametrize(
    ("text", "value"), [("zoo:large", "large"), ("zoo:18", 18), ("zoo:a:b.c", "a:b.c"), ("zoo:18a", "18a")]
)
def test_the_value_becomes_the_option(zoo: Registry, text: str, value: object) -> None:
    expected = {"name": "zoo", "model": value, "width": 8}
    assert options(zoo, flags_layer([("--backbone", "backbone.name", text)])) == expected
    for written in (text, {"name": text}):
        assert options(zoo, Layer("run.toml", {"backbone": written})) == expected


def test_other_options_stay_and_higher_layers_win(zoo: Registry) -> None:
    file = Layer("run.toml", {"backbone": {"name": "zoo:large", "width": 3}})
    for setting, value in (("backbone.name", "zoo:other"), ("backbone.model", "other")):
        assert options(zoo, file, flags_layer([("--flag", setting, value)])) == {
            "name": "zoo",
            "model": "other",
            "width": 3,
        }
    resolved = resolve([with_values(learner="inner-loop", dataset="pictures"), file], zoo)
    assert resolved.origins["backbone.model"] == "run.toml"
    # The run file of a run has the option in full.
    assert 'model = "large"' in resolved.to_toml()


def test_what_cannot_be_meant_is_refused(zoo: Registry) -> None:
    both = flags_layer([("--backbone", "backbone.name", "zoo:a"), ("--set", "backbone.model", "b")])
    with pytest.raises(ConfigError, match=r"'zoo:a' sets backbone.model, but it is also set to 'b'") as caught:
        options(zoo, both)
    assert caught.value.where == "--set"
    same = flags_layer([("--backbone", "backbone.name", "zoo:a"), ("--set", "backbone.model", "a")])
    assert options(zoo, same)["model"] == "a"
    with pytest.raises(ConfigError, match=r"The backbone 'conv' has no option that the 'wide' in 'conv:wide'"):
        options(zoo, Layer("run.toml", {"backbone": "conv:wide"}))
    with pytest.raises(ConfigError, match=r"There is no option 'backbone.wdith'"):
        options(zoo, Layer("run.toml", {"backbone": {"name": "zoo:a", "wdith": 3}}))
    with pytest.raises(PluginError, match="No backbone is called 'other:a'"):
        options(zoo, Layer("run.toml", {"backbone": "other:a"}))


def test_the_names_of_plugins_are_not_parted() -> None:
    entries = [
        Entry("backbone", "net", "m:A", "first"),
        Entry("backbone", "net", "m:B", "second"),
        Entry("backbone", "first", "m:C", "third"),
    ]
    registry = Registry(entries)
    # A distribution and a plugin may have equal names: what is the name of a plugin means the plugin.
    assert parted(registry, "backbone", "first:net") is None
    assert parted(registry, "backbone", "first:deep") == ("first", "deep")
    assert parted(registry, "backbone", "first:net:deep") == ("first", "net:deep")
    assert parted(registry, "backbone", "second:net:deep") == ("second:net", "deep")
    assert parted(registry, "backbone", "net") is None
    assert parted(registry, "learner", "net:deep") is None
