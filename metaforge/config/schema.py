"""The JSON Schema (draft 2020-12) of a run file, including the options of every installed plugin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaforge.config.settings import RunConfig
from metaforge.config.sources import PRESETS, SETS, SINGLES
from metaforge.errors import PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# In a run file this word stands for an optional value that is not set, and for an empty set of plugins.
NONE = "none"
# The tables of plugins in a run file, each with its kind.
_TABLES = {**{key: key for key in SINGLES}, **SETS, PRESETS: "preset"}


@dataclass
class Schema:
    """A schema, and one sentence for each plugin that is left out because it cannot be used."""

    value: dict[str, Any]
    left_out: list[str] = field(default_factory=list)


def run_schema(registry: Registry) -> Schema:
    """Return the schema of a whole run file: the sections of settings, and the tables of plugins."""
    definitions: dict[str, Any] = {}
    sections = _move_definitions(RunConfig.model_json_schema(ref_template="#/$defs/{model}"), definitions)
    schema = Schema({"$schema": DRAFT, "title": "MetaForge run file", **sections, "$defs": definitions})
    for table, kind in _TABLES.items():
        schema.value["properties"][table] = _table(registry, table, kind, definitions, schema.left_out)
    return schema


def kind_schema(registry: Registry, kind: str) -> Schema:
    """Return the schema of the part of a run file that is about one kind of plugin."""
    definitions: dict[str, Any] = {}
    (table,) = [key for key, own in _TABLES.items() if own == kind]
    schema = Schema({"$schema": DRAFT, "title": f"MetaForge run file: {table}"})
    schema.value |= _table(registry, table, kind, definitions, schema.left_out)
    schema.value["$defs"] = definitions
    return schema


def options_schema(cls: type[Any], label: str, *, prefix: str = "") -> dict[str, Any]:
    """Return the JSON Schema of a plugin's options; raise `PluginError` if a type among them has no JSON Schema.

    `label` names the plugin in the message. References to definitions have the form `#/$defs/<prefix><name>`.
    """
    try:
        schema: dict[str, Any] = cls.Config.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception as error:
        raise PluginError(
            f"The options of the {label} cannot be described: {type(error).__name__}: {error}",
            where=f"{cls.__module__}:{cls.__qualname__}.Config",
            remedy="its author should use types that JSON has; METAFORGE_DEBUG=1 shows the traceback",
        ) from error
    return schema


def _table(
    registry: Registry, table: str, kind: str, definitions: dict[str, Any], left_out: list[str]
) -> dict[str, Any]:
    """Return the schema of a table of plugins; add the schemas of their options to `definitions`."""
    plugin_names: dict[str, tuple[str, ...]] = {}
    for entry in registry.entries(kind):
        if entry.state == "hidden":
            continue
        try:
            options = _plugin(registry, entry, definitions)
        except PluginError as error:
            left_out.append(error.what)
            continue
        definition = f"{kind}/{entry.qualified}"
        names = (entry.name, entry.qualified) if entry.state == "ready" else (entry.qualified,)
        if table in SINGLES:
            options["properties"] = {"name": {"enum": list(names)}, **options.get("properties", {})}
        definitions[definition] = options
        plugin_names[definition] = names
    schema = _single(plugin_names) if table in SINGLES else _set(plugin_names)
    return {"description": f"The {kind} of the run." if table in SINGLES else f"The {table} of the run.", **schema}


def _plugin(registry: Registry, entry: Entry, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a plugin's options; add its own definitions to `definitions`."""
    cls = registry.load(entry.kind, entry.qualified)
    prefix = f"{entry.kind}/{entry.qualified}/"
    options = _move_definitions(options_schema(cls, entry.label, prefix=_json_pointer(prefix)), definitions, prefix)
    return {"description": entry.summary, **options} if entry.summary else options


def _single(plugin_names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of a table that chooses one plugin: a name, or a table of options with or without `name`.

    `plugin_names` maps the name of a definition to the names of the plugin in run files.
    """
    names = [name for group in plugin_names.values() for name in group]
    named = [
        {
            "if": {"properties": {"name": {"enum": list(group)}}, "required": ["name"]},
            "then": {"$ref": f"#/$defs/{_json_pointer(definition)}"},
        }
        for definition, group in plugin_names.items()
    ]
    # Without a name the options are for the default plugin, or for one named on the command line: any may be meant.
    any_plugin = {"anyOf": [{"$ref": f"#/$defs/{_json_pointer(definition)}"} for definition in plugin_names]}
    unnamed = {"if": {"not": {"required": ["name"]}}, "then": any_plugin}
    table = {"properties": {"name": {"enum": names}}, "allOf": [*named, unnamed]}
    return {"type": ["string", "object"], "if": {"type": "string"}, "then": {"enum": names}, "else": table}


def _set(plugin_names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of an ordered set of plugins: names with commas between them, a list of names, or tables.

    `plugin_names` maps the name of a definition to the names of the plugin in run files.
    """
    references = {
        name: {"$ref": f"#/$defs/{_json_pointer(definition)}"}
        for definition, group in plugin_names.items()
        for name in group
    }
    # Not `re.escape`, which also escapes `-`: in the regular expressions of JSON Schema (ECMA-262) that is an error.
    any_name = "|".join(re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", name) for name in references)
    item = rf"\s*(?:{any_name})?\s*" if any_name else r"\s*"
    return {
        "type": ["string", "array", "object"],
        "pattern": rf"^(?:\s*{NONE}\s*|{item}(?:,{item})*)$",
        "items": {"enum": [*references, NONE]},
        "if": {"type": "array", "contains": {"const": NONE}},
        "then": {"maxItems": 1},
        "properties": references,
        "additionalProperties": False,
    }


def _move_definitions(schema: Mapping[str, Any], definitions: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a schema of pydantic's, adapted to run files, with its `$defs` moved to `definitions`."""
    for name, value in schema.get("$defs", {}).items():
        definitions[prefix + name] = _adapted(value)
    return _adapted({key: value for key, value in schema.items() if key != "$defs"})


def _adapted(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without pydantic's titles, in which an optional value may also be the word `none`."""
    result = _without_title(schema)
    if "properties" in result:
        result["properties"] = {
            name: _accepting_none(_without_title(value)) for name, value in result["properties"].items()
        }
    return result


def _accepting_none(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that also accepts the word `none` if it accepts null."""
    union = schema.get("anyOf", [])
    return {**schema, "anyOf": [*union, {"const": NONE}]} if {"type": "null"} in union else schema


def _without_title(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}


def _json_pointer(name: str) -> str:
    """Return a name escaped for a JSON pointer in a URI fragment (RFC 6901, section 6)."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return re.sub(r"[^A-Za-z0-9._~:-]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), escaped)
