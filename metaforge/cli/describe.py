"""`metaforge describe`: what a plugin says of itself, from its class and the JSON Schema of its options."""

from __future__ import annotations

import dataclasses
import inspect
import json as jsons
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, chosen_kind, scanned
from metaforge.cli.output import guarded, put, put_json
from metaforge.errors import MetaForgeError, printable
from metaforge.registry.entry import CORE

if TYPE_CHECKING:
    from metaforge.registry.entry import Entry
    from metaforge.registry.registry import Registry

_TYPES = {"integer": "int", "number": "float", "string": "text", "boolean": "true | false", "null": "none"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_SIZES = {"Length": "characters", "Items": "items", "Properties": "entries"}
_COMMANDS = {
    "learner": "metaforge train --learner {name}",
    "adapter": "metaforge train --learner {learner} --adapter {name}",
    "regularizer": "metaforge train --learner {learner} --regularizer {name}",
    "backbone": "metaforge train --learner {learner} --backbone {name}",
    "dataset": "metaforge train --learner {learner} --dataset {name}",
    # A run with validations: every hook is called in it.
    "hook": "metaforge train --learner {learner} --set hooks={name} --set train.validate_every=100",
}
_PLACES = {
    "learner": "learner",
    "dataset": "dataset",
    "backbone": "backbone",
    "adapter": "adapters.{name}",
    "regularizer": "regularizers.{name}",
    "hook": "hooks.{name}",
}
# What a learner must be able to use for a plugin of this kind to have any effect in its run.
_NEEDED = {"adapter": "adapter", "regularizer": "backbone", "backbone": "backbone"}


@guarded
def describe(
    name: Annotated[str, typer.Argument(help="Name of a plugin.")], kind: KindOption = None, json: AsJson = False
) -> None:
    """Show what a plugin does: its options, tags, paper, and the command that uses it."""
    registry = scanned()
    facts = description(registry, registry.find_any(name, chosen_kind(kind)))
    if json:
        put_json(facts)
    else:
        put(shown(facts))


def description(registry: Registry, entry: Entry, *, data: bool = True) -> dict[str, Any]:
    """Return everything about a plugin that a person or a program would ask.

    With `data`, what the splits of a data set hold, if its files are there.
    """
    from metaforge.config.schema import options_schema

    name = entry.qualified if entry.state == "ambiguous" else entry.name
    cls = registry.load(entry.kind, name)
    schema = options_schema(cls, entry.label)
    place = name if entry.state == "ready" else jsons.dumps(name)
    facts = {
        **dataclasses.asdict(entry),
        "text": inspect.getdoc(cls) or "",
        "reference": cls.reference,
        "tags": _tags(cls),
        "options": list(options(schema, schema)),
        "defaults": {kind: dict(values) for kind, values in cls.defaults.items()},
        "table": _PLACES[entry.kind].format(name=place),
        "command": _COMMANDS[entry.kind].format(name=name, learner=_companion(registry, entry.kind, cls)),
    }
    if entry.kind == "dataset":
        facts["tags"] = {"kind": cls.kind} | ({"note": cls.note} if cls.note else {})
        facts["splits"] = _splits(entry, cls) if data else {}
    return facts


def _tags(cls: type[Any]) -> dict[str, Any]:
    tags = getattr(cls, "tags", None)
    if not dataclasses.is_dataclass(tags) or isinstance(tags, type):
        return {}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(tags).items()
    }


def _companion(registry: Registry, kind: str, cls: type[Any]) -> str:
    """Return a learner of MetaForge's own that can use the plugin, for a command that works as it stands."""
    for entry in registry.entries("learner") if kind != "learner" else ():
        if entry.distribution == CORE and entry.state == "ready":
            tags = registry.load("learner", entry.name).tags
            if cls.kind in tags.kinds if kind == "dataset" else _NEEDED.get(kind) in (None, *tags.needs):
                return entry.name
    return "LEARNER"


def _splits(entry: Entry, cls: type[Any]) -> dict[str, Any]:
    """Return what each split holds under the default options, or why that cannot be said."""
    from metaforge.cli.data import SPLITS
    from metaforge.config.validation import validate
    from metaforge.data.root import data_root
    from metaforge.registry.loading import plugin_errors

    found: dict[str, Any] = {}
    for split in SPLITS:
        try:
            config = validate(cls.Config, {}, "dataset", {})
            with plugin_errors(entry, "cannot tell its facts", keep_metaforge_errors=True):
                found[split] = dict(cls(config, root=data_root()).facts(split))
        except MetaForgeError as error:
            found[split] = {"unavailable": error.what}
    return found


def options(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield the options of a JSON Schema, those of nested models by dotted name."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        found = _resolved(field, root)
        if "properties" in found:
            yield from options(found, root, f"{prefix}{name}.")
            continue
        yield {
            "name": f"{prefix}{name}",
            "type": type_of(found, root),
            "default": found.get("default"),
            "required": name in required,
            "bounds": bounds(found, root),
            "text": found.get("description", ""),
        }


def _resolved(field: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref", "")
    return {**root["$defs"][reference.rpartition("/")[2]], **field} if reference else field


def type_of(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the type of an option in words."""
    field = _resolved(field, root)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_of(one, root) for one in field["anyOf"]))
    if "enum" in field:
        return " | ".join(written(one) for one in field["enum"])
    if "const" in field:
        return written(field["const"])
    if "prefixItems" in field:
        return f"list of {', '.join(type_of(one, root) for one in field['prefixItems'])}"
    if field.get("type") == "array":
        return f"list of {_each(field.get('items') or {}, root)}" if field.get("items") else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"table of {_each(values, root)}" if isinstance(values, Mapping) and values else "table"
    return "path" if field.get("format") == "path" else _TYPES.get(str(field.get("type")), "any value")


def _each(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    words = type_of(field, root)
    return f"({words})" if " | " in words or " or " in words else words


def bounds(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the bounds of an option in words, e.g. `>= 1`."""
    field = _resolved(field, root)
    found = [f"{sign} {_number(field[key])}" for key, sign in _BOUNDS.items() if key in field]
    for what, unit in _SIZES.items() if "prefixItems" not in field else ():
        least, most = field.get(f"min{what}"), field.get(f"max{what}")
        if least is not None and least == most:
            found.append(f"{least} {unit}")
        else:
            found += [f"at least {least} {unit if least > 1 else unit.removesuffix('s')}"] if least else []
            found += [f"at most {most} {unit}"] if most is not None else []
    found += [f"a multiple of {field['multipleOf']}"] if "multipleOf" in field else []
    found += [f"matching {field['pattern']}"] if "pattern" in field else []
    found += [text for one in field.get("anyOf", ()) if (text := bounds(one, root))]
    for one in (field.get("items"), field.get("additionalProperties")):
        if isinstance(one, Mapping) and (text := bounds(one, root)):
            found.append(f"each {text}")
    return ", ".join(found)


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def shown(facts: Mapping[str, Any]) -> str:
    """Return a description as text for a person."""
    from metaforge.config.toml_text import flatten

    head = f"{facts['kind']} {facts['name']}  ({facts['distribution']} {facts['version']}, {facts['target']})"
    about = [f"paper: {facts['reference']}"] if facts["reference"] else []
    about += [f"{name.replace('_', ' ')}: {_word(value)}" for name, value in facts["tags"].items()]
    parts = [[head], facts["text"].splitlines(), about, _splits_shown(facts), _options_shown(facts)]
    for kind, values in facts["defaults"].items():
        lines = [f"  {path} = {written(value)}" for path, value in flatten(values)]
        parts.append([f"settings that it suggests for {kind}:", *lines])
    parts.append([f"use it: {facts['command']}"])
    return "\n\n".join("\n".join(printable(line) for line in part) for part in parts if part)


def _splits_shown(facts: Mapping[str, Any]) -> list[str]:
    splits = facts.get("splits", {})
    return ["splits:", *(f"  {split}: {_facts(found)}" for split, found in splits.items())] if splits else []


def _facts(found: Mapping[str, Any]) -> str:
    if "unavailable" in found:
        return f"not available: {found['unavailable']}"
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {written(v)}" for k, v in found.items())


def _options_shown(facts: Mapping[str, Any]) -> list[str]:
    if not facts["options"]:
        return ["no options"]
    lines = [f"options, in a run file under [{facts['table']}]:"]
    for option in facts["options"]:
        default = "required" if option["required"] else f"default {written(option['default'])}"
        limits = f", {option['bounds']}" if option["bounds"] else ""
        lines += [f"  {option['name']}  ({option['type']}, {default}{limits})", f"      {option['text']}"]
    return lines


def written(value: Any) -> str:
    """Return a value as a run file or `--set` would write it; a text that is one word stands without quotes."""
    if value is None:
        return "none"
    if isinstance(value, str) and value.strip() == value and value:
        return value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(written(one) for one in value)}]"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else jsons.dumps(value, default=str)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(one) for one in value) or "none" if isinstance(value, (list, tuple)) else str(value)
