"""What a plugin says of itself, gathered from its class and the JSON Schema of its options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from metaforge.registry import Entry, Registry

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_COMMANDS = {
    "learner": "metaforge train --learner {name}",
    "adapter": "metaforge train --learner LEARNER --adapter {name}",
    "regularizer": "metaforge train --learner LEARNER --regularizer {name}",
    "backbone": "metaforge train --learner LEARNER --backbone {name}",
    "dataset": "metaforge train --learner LEARNER --dataset {name}",
    "hook": "metaforge train --learner LEARNER --set hooks={name}",
}


def description(registry: Registry, entry: Entry) -> dict[str, Any]:
    """Return everything about a plugin that a person or a program would ask."""
    name = entry.qualified if entry.state == "ambiguous" else entry.name
    cls = registry.load(entry.kind, name)
    schema = cls.Config.model_json_schema()
    facts = {
        **dataclasses.asdict(entry),
        "text": inspect.getdoc(cls) or "",
        "reference": cls.reference,
        "tags": _tags(cls),
        "options": list(options(schema, schema)),
        "defaults": {kind: dict(values) for kind, values in cls.defaults.items()},
        "command": _COMMANDS[entry.kind].format(name=name),
    }
    if entry.kind == "dataset":
        facts["tags"] = {"kind": cls.kind} | ({"note": cls.note} if cls.note else {})
    return facts


def _tags(cls: type[Any]) -> dict[str, Any]:
    tags = getattr(cls, "tags", None)
    if not dataclasses.is_dataclass(tags) or isinstance(tags, type):
        return {}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(tags).items()
    }


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
        return " or ".join(type_of(one, root) for one in field["anyOf"])
    if "enum" in field:
        return " | ".join(str(one) for one in field["enum"])
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        items: Mapping[str, Any] = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        return f"list of {type_of(items, root)}" if items else "list"
    names = {"integer": "int", "number": "float", "string": "text", "boolean": "true | false", "null": "none"}
    return names.get(str(field.get("type", "")), str(field.get("type", "any")))


def bounds(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the bounds of an option, e.g. `>= 1`."""
    field = _resolved(field, root)
    found = [f"{sign} {field[key]:g}" for key, sign in _BOUNDS.items() if key in field]
    inner = [*field.get("anyOf", ()), *([field["items"]] if isinstance(field.get("items"), Mapping) else [])]
    return ", ".join([*found, *(text for one in inner if (text := bounds(one, root)))])


def shown(facts: Mapping[str, Any]) -> str:
    """Return a description as text for a person."""
    from metaforge.cli.output import printable

    head = f"{facts['kind']} {facts['name']}  ({facts['distribution']} {facts['version']}, {facts['target']})"
    lines = [head, "", facts["text"], ""]
    lines += [f"paper: {facts['reference']}"] if facts["reference"] else []
    lines += [f"{name.replace('_', ' ')}: {_word(value)}" for name, value in facts["tags"].items()]
    lines += ["", "options:" if facts["options"] else "no options"]
    for option in facts["options"]:
        default = "required" if option["required"] else f"default {_word(option['default'])}"
        limits = f", {option['bounds']}" if option["bounds"] else ""
        lines += [f"  {option['name']}  ({option['type']}, {default}{limits})", f"      {option['text']}"]
    for kind, values in facts["defaults"].items():
        lines += ["", f"settings that it suggests for {kind}: {values}"]
    lines += ["", f"use it: {facts['command']}"]
    return "\n".join(printable(line) for line in "\n".join(lines).splitlines())


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(one) for one in value) or "none" if isinstance(value, (list, tuple)) else str(value)
