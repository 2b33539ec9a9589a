"""JSON Schema (draft 2020-12) of a run file, the options of every installed plugin included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES
from metaforge.errors import PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# The word that a run file writes for a value that is not set, and for an empty set of plugins: TOML has no null.
NONE = "none"


@dataclass
class Schema:
    """A schema, and the plugins that it leaves out: each with the reason, as a sentence."""

    value: dict[str, Any]
    left_out: list[str] = field(default_factory=list)


def run_schema(registry: Registry) -> Schema:
    """Return the schema of a run file: its sections, and a table (or set of tables) for each kind of plugin."""
    definitions: dict[str, Any] = {}
    sections = _hoisted(RunConfig.model_json_schema(ref_template="#/$defs/{model}"), definitions)
    made = Schema({"$schema": DRAFT, "title": "MetaForge run file", **sections, "$defs": definitions})
    for table, kind in (*((key, key) for key in SINGLES), *SETS.items()):
        made.value["properties"][table] = _table(registry, table, kind, definitions, made.left_out)
    return made


def kind_schema(registry: Registry, kind: str) -> Schema:
    """Return the schema of what a run file says of one kind of plugin: its table, or its set of tables."""
    definitions: dict[str, Any] = {}
    (table,) = [key for key in (*SINGLES, *SETS) if SETS.get(key, key) == kind]
    made = Schema({"$schema": DRAFT, "title": f"MetaForge run file: {table}"})
    made.value |= _table(registry, table, kind, definitions, made.left_out)
    made.value["$defs"] = definitions
    return made


def options_schema(cls: type[Any], label: str, *, prefix: str = "") -> dict[str, Any]:
    """Return the JSON Schema of a plugin's options; raise `PluginError` if they cannot be described.

    Definitions are referred to as `#/$defs/<prefix><name>`.
    """
    try:
        schema: dict[str, Any] = cls.Config.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception as error:
        raise PluginError(
            f"The options of the {label} cannot be described: {type(error).__name__}: {error}",
            where=f"{cls.__module__}:{cls.__qualname__}.Config",
            remedy="its author should use types that JSON knows; METAFORGE_DEBUG=1 shows the trace",
        ) from error
    return schema


def _table(
    registry: Registry, table: str, kind: str, definitions: dict[str, Any], left_out: list[str]
) -> dict[str, Any]:
    """Return the schema of a plugin table or set of tables, and put its plugins' options among the definitions."""
    chosen: dict[str, tuple[str, ...]] = {}
    for entry in registry.entries(kind):
        if entry.state == "hidden":
            continue
        try:
            options = _plugin(registry, entry, definitions)
        except PluginError as error:
            left_out.append(error.what)
            continue
        place = f"{kind}/{entry.qualified}"
        names = (entry.name, entry.qualified) if entry.state == "ready" else (entry.qualified,)
        if table in SINGLES:
            options["properties"] = {"name": {"enum": list(names)}, **options.get("properties", {})}
        definitions[place] = options
        chosen[place] = names
    made = _single(chosen) if table in SINGLES else _set(chosen)
    return {"description": f"The {kind} of the run." if table in SINGLES else f"The {table} of the run.", **made}


def _plugin(registry: Registry, entry: Entry, definitions: dict[str, Any]) -> dict[str, Any]:
    cls = registry.load(entry.kind, entry.qualified)
    prefix = f"{entry.kind}/{entry.qualified}/"
    options = _hoisted(options_schema(cls, entry.label, prefix=_pointer(prefix)), definitions, prefix)
    return {"description": entry.summary, **options} if entry.summary else options


def _single(chosen: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of a table that chooses one plugin: a name alone, or a table of options with `name` or not."""
    names = [name for group in chosen.values() for name in group]
    named = [
        {
            "if": {"properties": {"name": {"enum": list(group)}}, "required": ["name"]},
            "then": {"$ref": f"#/$defs/{_pointer(place)}"},
        }
        for place, group in chosen.items()
    ]
    # Without a name the options are for the default, or for what the command line names.
    anyone = {"anyOf": [{"$ref": f"#/$defs/{_pointer(place)}"} for place in chosen]}
    unnamed = {"if": {"not": {"required": ["name"]}}, "then": anyone}
    table = {"properties": {"name": {"enum": names}}, "allOf": [*named, unnamed]}
    return {"type": ["string", "object"], "if": {"type": "string"}, "then": {"enum": names}, "else": table}


def _set(chosen: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of an ordered set of plugins: names with commas between, a list of names, or tables by name."""
    references = {name: {"$ref": f"#/$defs/{_pointer(place)}"} for place, group in chosen.items() for name in group}
    word = "|".join(re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", name) for name in references)
    one = rf"\s*(?:{word})?\s*" if word else r"\s*"
    return {
        "type": ["string", "array", "object"],
        "pattern": rf"^(?:\s*{NONE}\s*|{one}(?:,{one})*)$",
        "items": {"enum": [*references, NONE]},
        "if": {"type": "array", "contains": {"const": NONE}},
        "then": {"maxItems": 1},
        "properties": references,
        "additionalProperties": False,
    }


def _hoisted(schema: Mapping[str, Any], definitions: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a schema as a run file reads it, its own definitions moved to those of the whole."""
    for name, value in schema.get("$defs", {}).items():
        definitions[prefix + name] = _read(value)
    return _read({key: value for key, value in schema.items() if key != "$defs"})


def _read(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in which an optional value may also be the word for none, without titles made from names."""
    made = _untitled(schema)
    if "properties" in made:
        made["properties"] = {name: _optional(_untitled(one)) for name, one in made["properties"].items()}
    return made


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    union = schema.get("anyOf", [])
    return {**schema, "anyOf": [*union, {"const": NONE}]} if {"type": "null"} in union else schema


def _untitled(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}


def _pointer(name: str) -> str:
    """Return a name as a JSON pointer within a URI fragment writes it."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return re.sub(r"[^A-Za-z0-9._~:-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), escaped)
