"""Layers of configuration: what a file, a command line or a plugin says, and how a higher one is laid over a lower."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.config.validation import check_depth
from metaforge.errors import ConfigError, nearest, shown

# Tables that choose one plugin (`name`, its options beside it), and ordered sets of plugins (a table by name for each).
SINGLES = ("learner", "dataset", "backbone")
SETS = {"adapters": "adapter", "regularizers": "regularizer", "hooks": "hook"}

_MAX_BYTES = 2**20
# Also a number of thousands of digits, bytes that are no text, and endless brackets.
_NO_TOML = (ValueError, RecursionError)


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


def normalise(layer: Layer, known: Iterable[str]) -> Layer:
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
