"""Layers of configuration laid over one another: a higher layer wins, and every value keeps its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaforge.config.sources import SETS, SINGLES, Layer
from metaforge.errors import ConfigError, nearest


class Merged:
    """Layers laid over one another: the values, where each comes from, and what gave way.

    `given` has the tables that the user touched, `mild` the paths whose values are only defaults.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.notes: list[str] = []
        self.mild: set[str] = set()

    def lay(self, layer: Layer) -> None:
        """Lay a (normalised) layer on top."""
        for key, value in layer.values.items():
            if key in SINGLES:
                self._rename(layer, key, value)
            if key in SETS:
                self._replace(layer, key, value)
            else:
                self._merge(layer, self.values, key, value)
            self._give(layer, key)
        for key, names in layer.patches.items():
            self._patch(layer, key, names)

    def _give(self, layer: Layer, key: str) -> None:
        if layer.given:
            self.given.setdefault(
                key, next((o for p, o in layer.origins.items() if p.split(".")[0] == key), layer.origin)
            )

    def _rename(self, layer: Layer, key: str, table: Mapping[str, Any]) -> None:
        old = self.values.get(key, {})
        # Options that the user gave before naming a plugin are meant for it; a default's are meant for the default.
        unnamed = "name" not in old and (key in self.given or not old)
        if "name" in table and not unnamed and old.get("name") != table["name"]:
            self.dropped(key, old, layer.origin_of(f"{key}.name"), table["name"])
            self._forget(key)

    def dropped(self, key: str, old: Mapping[str, Any], origin: str, name: str) -> None:
        """Note that options which the user gave no longer apply, because a higher layer chose another plugin."""
        options = [path for path in old if path != "name" and key in self.given]
        if options:
            self.notes.append(
                f"{key} is {name!r} by {origin}: options for {old.get('name')!r} are dropped ({', '.join(options)})"
            )

    def _forget(self, path: str) -> None:
        self.values.pop(path, None)
        self.given.pop(path, None)
        for known in [known for known in self.origins if known == path or known.startswith(f"{path}.")]:
            del self.origins[known]

    def _replace(self, layer: Layer, key: str, names: Mapping[str, Any]) -> None:
        old = self.values.get(key, {})
        kept = {path: origin for path, origin in self.origins.items() if path.split(".")[0] == key}
        self._forget(key)
        self.values[key] = {name: dict(old.get(name, {})) for name in names}
        for path, origin in kept.items():
            if any(path.startswith(f"{key}.{name}.") for name in names):
                self.origins[path] = origin
        self.origins[key] = layer.origin_of(key)
        for name, options in names.items():
            self.origins[f"{key}.{name}"] = layer.origin_of(f"{key}.{name}")
            self._merge(layer, self.values[key], name, options, f"{key}.")

    def _patch(self, layer: Layer, key: str, names: Mapping[str, Mapping[str, Any]]) -> None:
        for name, options in names.items():
            if name not in self.values.get(key, {}):
                chain = ", ".join(self.values.get(key, {})) or "none"
                origin = layer.origin_of(".".join([key, name, *list(options)[:1]]))
                raise ConfigError(
                    f"{key}.{name} is not among the {key} of this run.{nearest(name, self.values.get(key, {}))}",
                    where=f"{origin} (chosen: {chain})",
                    remedy=f"choose it with --{SETS[key]} {name}, or in a file with [{key}.{name}]",
                )
            self._merge(layer, self.values[key], name, options, f"{key}.")
            self._give(layer, key)

    def _merge(self, layer: Layer, into: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            table = into.get(key)
            into[key] = table = dict(table) if isinstance(table, Mapping) else {}
            for inner, one in value.items():
                self._merge(layer, table, inner, one, f"{path}.")
        else:
            into[key] = value
            self.origins[path] = layer.origin_of(path)
            (self.mild.discard if layer.given else self.mild.add)(path)
