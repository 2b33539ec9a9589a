"""The sources of settings: a TOML file, the command line or the defaults of a plugin, each read into a `Layer`."""

from __future__ import annotations

import datetime
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.config import paths
from metaforge.config.renamed import renamed
from metaforge.config.validation import check_bounds
from metaforge.errors import ConfigError, nearest, shown

# The tables that choose one plugin: the key `name`, and its options beside it.
SINGLES = ("learner", "dataset", "backbone", "optimizer", "schedule")
# The tables that choose an ordered set of plugins, each with its kind: inside is one table of options per plugin.
SETS = {"adapters": "adapter", "regularizers": "regularizer", "hooks": "hook"}
# The table that names presets: layers of settings, which the resolved settings of a run contain.
PRESETS = "presets"

_MAX_BYTES = 2**20
# What parsing TOML raises: the ValueErrors include those of invalid UTF-8 and of integers of thousands of digits.
_TOML_ERRORS = (ValueError, RecursionError)


@dataclass(frozen=True)
class Layer:
    """Nested settings from one source.

    Attributes:
        origin: The source, for messages: the path of a file, say.
        values: The settings by section. A set of plugins in them replaces the set of lower layers.
        patches: Options of single plugins in sets, by set and plugin; they do not change which plugins are in the set.
        origins: The origin of single values by dotted path, where it is more specific than `origin`.
        explicit: Whether the user wrote the layer. A default (False) that does not apply is dropped without an error.
    """

    origin: str
    values: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    explicit: bool = True

    def origin_of(self, path: str) -> str:
        """Return the origin of the value at a dotted path: its own, else that of the nearest table around it."""
        parts = path.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        return next((self.origins[prefix] for prefix in prefixes if self.origins.get(prefix)), self.origin)

    def map_plugin_names(self, name: Callable[[str, str], str]) -> Layer:
        """Return this normalised layer with each plugin name `old` replaced by `name(kind, old)`."""
        values = dict(self.values)
        for key in SINGLES:
            if "name" in values.get(key, {}):
                values[key] = {**values[key], "name": name(key, values[key]["name"])}
        for key, kind in SETS.items():
            if key in values:
                values[key] = {name(kind, old): options for old, options in values[key].items()}
        return replace(self, values=values)


def file_layer(path: Path) -> Layer:
    """Return the settings in a TOML file.

    Besides regular files, open file descriptors (`/dev/stdin`, `/dev/fd/63`) are read, which is how a shell passes the
    output of a command: `--config <(command)`. Other special files are refused: opening a named pipe would block until
    another process writes to it.

    Raises:
        ConfigError: The file cannot be read, is not a regular file, is too large or is not TOML.
    """
    remedy = "a run file is TOML; `metaforge config` prints one"
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
        if not (is_regular or path.is_dir() or _is_descriptor(path)):
            raise ConfigError(
                f"The file {path} is not a regular file.",
                remedy="write the settings to a file, or pass the output of a command with --config <(command)",
            )
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"The file {path} is larger than {_MAX_BYTES:,} bytes.", remedy=remedy)
        # utf-8-sig skips the byte order mark that some editors write.
        return Layer(str(path), tomllib.loads(data.decode("utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except _TOML_ERRORS as error:
        raise ConfigError(f"The file {path} is not valid TOML: {error}.", where=str(path), remedy=remedy) from error


def _is_descriptor(path: Path) -> bool:
    """Return whether a path names a file descriptor of this process, which is open already."""
    absolute = path.absolute()
    return str(absolute) == "/dev/stdin" or str(absolute.parent) in ("/dev/fd", "/proc/self/fd")


def flags_layer(flags: Iterable[tuple[str, str, Any]]) -> Layer:
    """Return the settings of a command line.

    The order of the flags does not matter. A table sets each value in it, and `learner = "x"` sets `learner.name`, so
    that two flags for one table are merged.

    Args:
        flags: For each flag its text as typed, the dotted path that it sets, and the value.

    Raises:
        ConfigError: Two flags contradict each other (the message names both), or a path is invalid.
    """
    settings: dict[tuple[str, ...], tuple[str, Any]] = {}
    for flag, path, value in flags:
        keys = paths.parts(path)
        if not keys:
            raise ConfigError(
                f"{shown(path)} is not the name of a setting.",
                where=flag,
                remedy="write section.key=value, with a key that contains a dot in quotes",
            )
        for inner_keys, inner in _single_values(keys, value):
            _require_consistent(settings, inner_keys, flag, inner)
            settings.setdefault(inner_keys, (flag, inner))
    values: dict[str, Any] = {}
    patches: dict[str, Any] = {}
    for keys, (_, value) in settings.items():
        table = patches if _is_patch(keys) else values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        table[keys[-1]] = value
    return Layer("command line", values, patches, {paths.joined(keys): flag for keys, (flag, _) in settings.items()})


def _is_patch(keys: Sequence[str]) -> bool:
    """Return whether a path sets options of one plugin in a set, and not which plugins are in the set."""
    return keys[0] in SETS and len(keys) > 1


def _single_values(keys: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of each setting that is set by setting a path to a value."""
    if keys[0] in SINGLES and len(keys) == 1 and isinstance(value, str):
        yield (*keys, "name"), value
    elif isinstance(value, dict) and value and keys not in {(name,) for name in (*SETS, PRESETS)}:
        for key, inner in value.items():
            yield from _single_values((*keys, key), inner)
    else:
        yield keys, value


def _require_consistent(
    settings: Mapping[tuple[str, ...], tuple[str, Any]], keys: tuple[str, ...], flag: str, value: Any
) -> None:
    """Raise `ConfigError` if an earlier flag sets a path to another value, or a table around it or a value in it."""
    remedy = "use one of them"
    if keys in settings and settings[keys][1] != value:
        other, before = settings[keys]
        raise ConfigError(
            f"{other} and {flag} set {paths.joined(keys)} to different values: {shown(before)}, {shown(value)}.",
            remedy=remedy,
        )
    for others, (other, before) in settings.items():
        (short, outer, single), (long, inner, _) = sorted(
            [(others, other, before), (keys, flag, value)], key=lambda setting: len(setting[0])
        )
        if len(short) < len(long) and long[: len(short)] == short and _is_patch(short) == _is_patch(long):
            raise ConfigError(
                f"{outer} sets {paths.joined(short)} to {shown(single)}, but {inner} sets {paths.joined(long)} in it.",
                where=paths.joined(long),
                remedy=remedy,
            )


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the dotted path and the value of `--set key=value`; raise `ConfigError` if the text has no such form."""
    # A key in quotes may contain an equals sign.
    match = re.fullmatch(r"((?:\"[^\"]*\"|'[^']*'|[^=\"'])+)=(.*)", text, re.DOTALL)
    path, value = match.groups() if match else ("", "")
    if not path.strip():
        raise ConfigError(
            f"{shown(text)} is not of the form key=value.", where="--set", remedy="e.g. --set train.lr=0.001"
        )
    return path.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """Return a text as a TOML value, or unchanged if it is not one: strings need no quotes on the command line."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except _TOML_ERRORS:
        return text
    value = parsed["value"]
    # No setting is a date, and a text with a line break could set a second key.
    is_date = isinstance(value, (datetime.date, datetime.time))
    return text if is_date or len(parsed) > 1 else value


def normalise(layer: Layer, known: Iterable[str]) -> Layer:
    """Return a layer whose plugin tables are written in full: `learner = "x"` becomes `learner.name = "x"`.

    Raises `ConfigError` for a top-level key that is not in `known`, and for a plugin table of a wrong type.
    """
    known = list(known)
    check_bounds([layer.values, layer.patches], layer.origin)
    present, moved = renamed(layer.values)
    origins = {**layer.origins, **{new: layer.origin_of(old) for old, new in moved.items()}}
    layer = replace(layer, values=present, origins=origins)
    values = {}
    for key, value in layer.values.items():
        if key not in known:
            raise ConfigError(
                f"There is no setting {shown(key)}.{nearest(key, known)}",
                where=layer.origin_of(key),
                remedy=f"the settings and tables are {', '.join(known)}",
            )
        values[key] = _single(layer, key, value) if key in SINGLES else value
        if key in (*SETS, PRESETS):
            values[key] = _set(layer, key, value)
    for key, names in layer.patches.items():
        for name, options in names.items():
            if not isinstance(options, Mapping):
                raise _not_a_table(layer, f"{key}.{name}", options)
    return replace(layer, values=values)


def _single(layer: Layer, key: str, value: Any) -> dict[str, Any]:
    """Return the table of one plugin, from a name or a table."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise _not_a_table(layer, key, value)
    name = value.get("name", "")
    if not isinstance(name, str):
        raise ConfigError(
            f"{key}.name is {shown(name)}, not a string.",
            where=layer.origin_of(f"{key}.name"),
            remedy=f"write the name of a plugin; `metaforge list-plugins --kind {key}` shows them",
        )
    return dict(value)


def _set(layer: Layer, key: str, value: Any) -> dict[str, Any]:
    """Return a table of options per plugin, from names with commas between them, a list of names or a table."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        if repeated := next((name for name in value if list(value).count(name) > 1), None):
            raise ConfigError(f"{key} names {repeated!r} twice.", where=layer.origin_of(key), remedy="name it once")
        # `none` stands for an empty set, as it stands for an optional value that is not set.
        return {} if list(value) == ["none"] else {name: {} for name in value}
    if not isinstance(value, Mapping):
        raise _not_a_table(layer, key, value)
    for name, options in value.items():
        if not isinstance(options, Mapping):
            raise _not_a_table(layer, f"{key}.{name}", options)
    return {name: dict(options) for name, options in value.items()}


def _not_a_table(layer: Layer, path: str, value: Any) -> ConfigError:
    return ConfigError(f"{path} is {shown(value)}, not a table.", where=layer.origin_of(path), remedy=f"write [{path}]")
