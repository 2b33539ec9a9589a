"""Layers of configuration: what a file, a command line or a plugin says, and how a higher one is laid over a lower."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.errors import ConfigError, nearest, shown
from metaforge.validation import check_depth

# Tables that choose one plugin (`name`, its options beside it), and ordered sets of plugins (a table by name for each).
SINGLES = ("learner", "dataset", "backbone")
SETS = {"adapters": "adapter", "regularizers": "regularizer", "hooks": "hook"}

_MAX_BYTES = 2**20
# Also a number of thousands of digits, bytes that are no text, and endless brackets.
_NO_TOML = (ValueError, RecursionError)

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Layer:
    """Nested values and where they come from.

    `values` of a set of plugins replace the set below; `patches` only change options of plugins that are already in it.
    `origins` names the origin of single values where it is finer than the layer's; `given` is False for defaults, which
    give way in silence where they do not apply.
    """

    origin: str
    values: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    given: bool = True

    def origin_of(self, path: str) -> str:
        """Return where the value at a dotted path comes from."""
        parts = path.split(".")
        ends = range(len(parts), 0, -1)
        return next((found for end in ends if (found := self.origins.get(".".join(parts[:end])))), self.origin)

    def renamed(self, name: Callable[[str, str], str]) -> Layer:
        """Return this (normalised) layer with `name(kind, old)` for the name of each plugin that its values choose."""
        values = dict(self.values)
        for key in SINGLES:
            if "name" in values.get(key, {}):
                values[key] = {**values[key], "name": name(key, values[key]["name"])}
        for key, kind in SETS.items():
            if key in values:
                values[key] = {name(kind, old): options for old, options in values[key].items()}
        return replace(self, values=values)


def file_layer(path: Path) -> Layer:
    """Return the layer that a TOML file describes; raise `ConfigError` if it cannot be read."""
    remedy = "a run file is TOML; `metaforge config` prints one"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"The file {path} is larger than {_MAX_BYTES:,} bytes.", remedy=remedy)
        # Some editors begin a file with a mark that TOML does not know.
        return Layer(str(path), tomllib.loads(data.decode("utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except _NO_TOML as error:
        raise ConfigError(f"The file {path} is not valid TOML: {error}.", where=str(path), remedy=remedy) from error


def flags_layer(flags: Iterable[tuple[str, str, Any]]) -> Layer:
    """Return the layer of a command line: triples of a flag as typed, the dotted path that it sets, and the value.

    All flags form one layer, so their order does not matter; two that set one path to different values are refused.
    """
    values: dict[str, Any] = {}
    patches: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for flag, path, value in flags:
        parts = path.split(".")
        if not all(parts):
            raise ConfigError(f"{shown(path)} is no name of a setting.", where=flag, remedy="write section.key=value")
        target = patches if parts[0] in SETS and len(parts) > 1 else values
        for name in parts[:-1]:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    f"{flag} reaches into a value that another flag sets.", where=path, remedy="give one of them"
                )
        if parts[-1] in target and target[parts[-1]] != value:
            raise ConfigError(
                f"{origins[path]} and {flag} give {path} different values: {shown(target[parts[-1]])}, {shown(value)}.",
                remedy="give one of them",
            )
        target[parts[-1]] = value
        origins.setdefault(path, flag)
    return Layer("command line", values, patches, origins)


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the dotted path and the value of a `--set key=value`; the value is TOML, or else a bare word."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{shown(text)} is not key=value.", where="--set", remedy="e.g. --set train.lr=0.001")
    return path.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """Return what a text means as a TOML value; a bare word means itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except _NO_TOML:
        return text
    value = parsed["value"]
    dated = isinstance(value, (datetime.date, datetime.time))
    return text if dated or len(parsed) > 1 else value


def normalised(layer: Layer, known: Iterable[str]) -> Layer:
    """Return a layer whose plugin tables are written in full; raise `ConfigError` for a table that does not exist."""
    known = list(known)
    check_depth([layer.values, layer.patches], layer.origin)
    values = {}
    for key, value in layer.values.items():
        if key not in known:
            raise ConfigError(
                f"There is no setting {shown(key)}.{nearest(key, known)}",
                where=layer.origin_of(key),
                remedy=f"the settings and tables are {', '.join(known)}",
            )
        values[key] = _single(layer, key, value) if key in SINGLES else value
        if key in SETS:
            values[key] = _set(layer, key, value)
    for key, names in layer.patches.items():
        for name, options in names.items():
            if not isinstance(options, Mapping):
                raise _not_a_table(layer, f"{key}.{name}", options)
    return Layer(layer.origin, values, layer.patches, layer.origins, layer.given)


def _single(layer: Layer, key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise _not_a_table(layer, key, value)
    name = value.get("name", "")
    if not isinstance(name, str):
        raise ConfigError(
            f"{key}.name is {shown(name)}, not a text.",
            where=layer.origin_of(f"{key}.name"),
            remedy=f"write the name of a plugin; `metaforge list-plugins --kind {key}` shows them",
        )
    return dict(value)


def _set(layer: Layer, key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        if twice := next((name for name in value if list(value).count(name) > 1), None):
            raise ConfigError(f"{key} names {twice!r} twice.", where=layer.origin_of(key), remedy="name it once")
        # The word that clears an optional value clears a set too.
        return {} if list(value) == ["none"] else {name: {} for name in value}
    if not isinstance(value, Mapping):
        raise _not_a_table(layer, key, value)
    for name, options in value.items():
        if not isinstance(options, Mapping):
            raise _not_a_table(layer, f"{key}.{name}", options)
    return {name: dict(options) for name, options in value.items()}


def _not_a_table(layer: Layer, path: str, value: Any) -> ConfigError:
    return ConfigError(f"{path} is {shown(value)}, not a table.", where=layer.origin_of(path), remedy=f"write [{path}]")


class Fold:
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


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested values by dotted path; an empty table is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def writable(value: Any) -> Any:
    """Return values as TOML can hold them: it has no null, so the word `none` stands for it."""
    if isinstance(value, Mapping):
        return {key: writable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [writable(one) for one in value]
    return "none" if value is None else value


def commented(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return a run file of one value per line, each with its origin as a comment."""
    rows = []
    for path, value in flatten(values):
        key = ".".join(part if _BARE.fullmatch(part) else json.dumps(part) for part in path.split("."))
        rows.append((f"{key} = {'{}' if isinstance(value, Mapping) else json.dumps(value)}", origins[path]))
    width = max(len(text) for text, _ in rows)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)
