"""Merging layers of settings: a value of a higher layer replaces that of a lower one, and each keeps its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaforge.config import paths
from metaforge.config.sources import SETS, SINGLES, Layer
from metaforge.errors import ConfigError, nearest


class Merged:
    """The result of merging layers, which are applied from the lowest to the highest.

    Attributes:
        values: The nested values.
        origins: The origin of each value, by dotted path.
        explicit: The origin of each top-level table, or top-level value, that the user has set, in full or in part.
        default_paths: The dotted paths of values that come from defaults.
        notes: Sentences for the user on explicit options that were dropped.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.explicit: dict[str, str] = {}
        self.default_paths: set[str] = set()
        self.notes: list[str] = []

    def apply(self, layer: Layer) -> None:
        """Merge a normalised layer on top of the others.

        Raises `ConfigError` if it changes an option of an adapter, regularizer or hook that is not chosen.
        """
        for key, value in layer.values.items():
            if key in SINGLES:
                self._drop_options_of_other_plugin(layer, key, value)
            if key in SETS:
                self._replace_set(layer, key, value)
            else:
                self._merge(layer, self.values, key, value)
            self._mark_explicit(layer, key)
        for key, names in layer.patches.items():
            self._change_options(layer, key, names)

    def note_dropped(self, key: str, old: Mapping[str, Any], origin: str, name: str) -> None:
        """Add a note if the table `old` has options, which are dropped because `origin` chooses the plugin `name`."""
        options = [option for option in old if option != "name"]
        if options:
            self.notes.append(
                f"{key} is {name!r} by {origin}: options for {old.get('name')!r} are dropped ({', '.join(options)})"
            )

    def _drop_options_of_other_plugin(self, layer: Layer, key: str, table: Mapping[str, Any]) -> None:
        """Remove the table `key` if it has options for another plugin than the one that the layer chooses."""
        old = self.values.get(key, {})
        # Explicit options without a name are meant for the plugin that a higher layer names; default ones are meant for
        # the default plugin.
        is_open = "name" not in old and (key in self.explicit or not old)
        if "name" in table and not is_open and old.get("name") != table["name"]:
            if key in self.explicit:
                self.note_dropped(key, old, layer.origin_of(f"{key}.name"), table["name"])
            self._remove(key)

    def _replace_set(self, layer: Layer, key: str, names: Mapping[str, Any]) -> None:
        """Replace a set of plugins by that of the layer; a plugin that is in both keeps its options."""
        old = self.values.get(key, {})
        old_origins = {path: origin for path, origin in self.origins.items() if path.split(".")[0] == key}
        self._remove(key)
        self.values[key] = {name: dict(old.get(name, {})) for name in names}
        for path, origin in old_origins.items():
            if any(path.startswith(f"{key}.{name}.") for name in names):
                self.origins[path] = origin
        self.origins[key] = layer.origin_of(key)
        for name, options in names.items():
            self.origins[f"{key}.{name}"] = layer.origin_of(f"{key}.{name}")
            self._merge(layer, self.values[key], name, options, f"{key}.")

    def _change_options(self, layer: Layer, key: str, names: Mapping[str, Mapping[str, Any]]) -> None:
        """Merge options into the plugins of a set, without changing which plugins are in it."""
        for name, options in names.items():
            chosen = self.values.get(key, {})
            if name not in chosen:
                origin = layer.origin_of(".".join([key, name, *list(options)[:1]]))
                raise ConfigError(
                    f"{key}.{name} is not among the {key} of this run.{nearest(name, chosen)}",
                    where=f"{origin} (chosen: {', '.join(chosen) or 'none'})",
                    remedy=f"choose it with --{SETS[key]} {name}, or in a file with [{key}.{name}]",
                )
            self._merge(layer, chosen, name, options, f"{key}.")
            self._mark_explicit(layer, key)

    def _merge(self, layer: Layer, into: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
        """Set `into[key]` to a value, or merge it recursively if it is a table; `prefix` begins its dotted path."""
        path = f"{prefix}{paths.quoted(key)}"
        if isinstance(value, Mapping):
            old = into.get(key)
            into[key] = table = dict(old) if isinstance(old, Mapping) else {}
            for inner_key, inner in value.items():
                self._merge(layer, table, inner_key, inner, f"{path}.")
            return
        into[key] = value
        self.origins[path] = layer.origin_of(path)
        if layer.explicit:
            self.default_paths.discard(path)
        else:
            self.default_paths.add(path)

    def _mark_explicit(self, layer: Layer, key: str) -> None:
        """Record the origin of a table or value of an explicit layer, unless a lower layer was explicit already."""
        if layer.explicit:
            origins = (origin for path, origin in layer.origins.items() if path.split(".")[0] == key)
            self.explicit.setdefault(key, next(origins, layer.origin))

    def _remove(self, path: str) -> None:
        """Remove a top-level table, with its origins."""
        self.values.pop(path, None)
        self.explicit.pop(path, None)
        for known in [known for known in self.origins if known == path or known.startswith(f"{path}.")]:
            del self.origins[known]
