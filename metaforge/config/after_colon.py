"""`NAME:VALUE` in place of the name of a plugin: the value is that of one of its options, `Config.after_colon`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metaforge.config.sources import SINGLES, Layer, parse_value
from metaforge.errors import ConfigError, shown
from metaforge.registry.registry import Registry


def parted(registry: Registry, kind: str, text: str) -> tuple[str, str] | None:
    """Return the name of a plugin and the value of its option; None if `text` does not begin with a plugin's name.

    What is the whole name of a plugin, such as `distribution:name`, is not parted.
    """
    names = {name for entry in registry.entries(kind) for name in (entry.name, entry.qualified)}
    places = () if text in names else (place for place, letter in enumerate(text) if letter == ":")
    return next(((text[:place], text[place + 1 :]) for place in places if text[:place] in names), None)


def expanded(registry: Registry, layer: Layer) -> Layer:
    """Return a normalised layer in which `name = "NAME:VALUE"` is the name of a plugin and its option.

    Raises:
        ConfigError: The plugin has no such option, or the layer gives the option another value too.
        PluginError: The plugin cannot be used.
    """
    values, origins = dict(layer.values), dict(layer.origins)
    for kind in SINGLES:
        table: Mapping[str, Any] = values.get(kind, {})
        if (found := parted(registry, kind, table.get("name", ""))) is None:
            continue
        name, text = found
        option, value = str(getattr(registry.load(kind, name).Config, "after_colon", "")), parse_value(text)
        origin = layer.origin_of(f"{kind}.name")
        if not option:
            raise ConfigError(
                f"The {kind} {name!r} has no option that the {shown(text)} in {shown(table['name'])} could set.",
                where=origin,
                remedy=f"write {name}, and set its options by their names; `metaforge describe {name}` lists them",
            )
        if table.get(option, value) != value:
            raise ConfigError(
                f"{shown(table['name'])} sets {kind}.{option}, but it is also set to {shown(table[option])}.",
                where=layer.origin_of(f"{kind}.{option}"),
                remedy="use one of them",
            )
        values[kind] = {**table, "name": name, option: value}
        origins[f"{kind}.{option}"] = origin
    return replace(layer, values=values, origins=origins)
