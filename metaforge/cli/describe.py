"""`metaforge describe`: what a plugin does, from its class, its docstring and the JSON Schema of its options."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, parse_kind, scan_plugins
from metaforge.cli.output import handle_errors, print_answer, print_json
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
    "optimizer": "metaforge train --learner {learner} --optimizer {name}",
    "schedule": "metaforge train --learner {learner} --schedule {name}",
    "preset": "metaforge train --learner {learner} --preset {name}",
    # With validation, so that every hook is called.
    "hook": "metaforge train --learner {learner} --hook {name} --set train.validate_every=100",
}
# The table of a run file that holds the options of a plugin.
_TABLES = {
    "learner": "learner",
    "dataset": "dataset",
    "backbone": "backbone",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "adapter": "adapters.{name}",
    "regularizer": "regularizers.{name}",
    "hook": "hooks.{name}",
    "preset": "presets.{name}",
}
# What a learner must use for a plugin of this kind to have any effect.
_NEEDED = {"adapter": "adapter", "regularizer": "backbone", "backbone": "backbone", "preset": "adapter"}


@handle_errors
def describe(
    name: Annotated[str, typer.Argument(help="Name of a plugin.")], kind: KindOption = None, as_json: AsJson = False
) -> None:
    """Show what a plugin does: its options, tags, paper, and the command that uses it."""
    registry = scan_plugins()
    facts = description(registry, registry.find_any(name, parse_kind(kind)))
    if as_json:
        print_json(facts)
    else:
        print_answer(description_text(facts))


def description(registry: Registry, entry: Entry, *, data: bool = True) -> dict[str, Any]:
    """Return all facts about a plugin, as plain data.

    With `data`, the facts of a data set include what its splits contain, if its files are present.
    """
    from metaforge.authoring.kinds import task_kind
    from metaforge.config.schema import options_schema

    name = entry.qualified if entry.state == "ambiguous" else entry.name
    cls = registry.load(entry.kind, name)
    schema = options_schema(cls, entry.label)
    table_name = name if entry.state == "ready" else json.dumps(name)
    facts = {
        **dataclasses.asdict(entry),
        "text": inspect.getdoc(cls) or "",
        "reference": cls.reference,
        "tags": _tags(cls),
        "options": list(describe_options(schema, schema)),
        "defaults": {kind: dict(values) for kind, values in cls.defaults.items()},
        "table": _TABLES[entry.kind].format(name=table_name),
        "command": _command(registry, entry.kind, name, cls),
    }
    if entry.kind == "preset":
        facts["settings"] = dict(cls.settings)
    if entry.kind == "dataset":
        facts["tags"] = {"kind": task_kind(cls.kind).name} | ({"note": cls.note} if cls.note else {})
        facts["splits"] = _splits(entry, cls) if data else {}
    return facts


def _command(registry: Registry, kind: str, name: str, cls: type[Any]) -> str:
    """Return a command that uses a plugin; an adapter without a learning rate is followed by the usual one."""
    learner = _suitable_learner(registry, kind, cls)
    if kind == "adapter" and not cls.tags.rate and learner != "LEARNER":
        usual = next(iter(registry.load("learner", learner).defaults.values())).get("adapters", {})
        name = ",".join([name, *usual])
    return _COMMANDS[kind].format(name=name, learner=learner)


def _tags(cls: type[Any]) -> dict[str, Any]:
    """Return the tags of a learner or adapter as plain data; other plugins have none."""
    tags = getattr(cls, "tags", None)
    if not dataclasses.is_dataclass(tags) or isinstance(tags, type):
        return {}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(tags).items()
    }


def _suitable_learner(registry: Registry, kind: str, cls: type[Any]) -> str:
    """Return the name of a built-in learner that can use the plugin, or `LEARNER` if there is none.

    It is none that reads the numbers of classes: not every data set has them, and it need not train by an inner loop.
    """
    from metaforge.authoring.kinds import task_kind

    dataset = cls if kind == "dataset" else None
    if kind == "preset":
        chosen = {key: _name_in(cls.settings.get(key)) for key in ("learner", "dataset")}
        if chosen["learner"]:
            return chosen["learner"]
        dataset = registry.load("dataset", chosen["dataset"]) if chosen["dataset"] else None
    for entry in registry.entries("learner") if kind != "learner" else ():
        if entry.distribution == CORE and entry.state == "ready":
            tags = registry.load("learner", entry.name).tags
            fits = not tags.uses_classes and (dataset is None or task_kind(dataset.kind).solved_by(tags))
            if fits and _NEEDED.get(kind) in (None, *tags.needs):
                return entry.name
    return "LEARNER"


def _name_in(table: Any) -> str:
    """Return the name of the plugin in a table of settings, which may be the name itself; empty if there is none."""
    return str(table.get("name", "")) if isinstance(table, Mapping) else str(table or "")


def _splits(entry: Entry, cls: type[Any]) -> dict[str, Any]:
    """Return what each split contains under the default options, or why it is not available."""
    from metaforge.cli.data import SPLITS
    from metaforge.config.validation import validate
    from metaforge.data.root import data_root
    from metaforge.registry.loading import plugin_errors

    splits: dict[str, Any] = {}
    for split in SPLITS:
        try:
            config = validate(cls.Config, {}, "dataset", {})
            with plugin_errors(entry, "cannot describe its splits", keep_metaforge_errors=True):
                splits[split] = dict(cls(config, root=data_root()).facts(split))
        except MetaForgeError as error:
            splits[split] = {"unavailable": error.what}
    return splits


def describe_options(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield a description of each option in a JSON Schema; those of nested models have dotted names.

    `root` is the whole schema, whose `$defs` hold the definitions that `schema` refers to.
    """
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        option = _resolve_reference(field, root)
        if "properties" in option:
            yield from describe_options(option, root, f"{prefix}{name}.")
            continue
        yield {
            "name": f"{prefix}{name}",
            "type": type_text(option, root),
            "default": option.get("default"),
            "required": name in required,
            "bounds": bounds_text(option, root),
            "text": option.get("description", ""),
        }


def _resolve_reference(field: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its `$ref`, if any, replaced by the definition."""
    reference = field.get("$ref", "")
    return {**root["$defs"][reference.rpartition("/")[2]], **field} if reference else field


def type_text(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the type of an option in words, e.g. `list of int`."""
    field = _resolve_reference(field, root)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_text(one, root) for one in field["anyOf"]))
    if "enum" in field:
        return " | ".join(value_text(one) for one in field["enum"])
    if "const" in field:
        return value_text(field["const"])
    if "prefixItems" in field:
        return f"list of {', '.join(type_text(one, root) for one in field['prefixItems'])}"
    if field.get("type") == "array":
        return f"list of {_item_type_text(field.get('items') or {}, root)}" if field.get("items") else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"table of {_item_type_text(values, root)}" if isinstance(values, Mapping) and values else "table"
    return "path" if field.get("format") == "path" else _TYPES.get(str(field.get("type")), "any value")


def _item_type_text(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the type of the items of a list or table, in brackets if it is a choice."""
    text = type_text(field, root)
    return f"({text})" if " | " in text or " or " in text else text


def bounds_text(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the bounds of an option in words, e.g. `>= 1`."""
    field = _resolve_reference(field, root)
    texts = [f"{sign} {_number_text(field[key])}" for key, sign in _BOUNDS.items() if key in field]
    for size, unit in _SIZES.items() if "prefixItems" not in field else ():
        least, most = field.get(f"min{size}"), field.get(f"max{size}")
        if least is not None and least == most:
            texts.append(f"{least} {unit}")
        else:
            texts += [f"at least {least} {unit if least > 1 else unit.removesuffix('s')}"] if least else []
            texts += [f"at most {most} {unit}"] if most is not None else []
    texts += [f"a multiple of {field['multipleOf']}"] if "multipleOf" in field else []
    texts += [f"matching {field['pattern']}"] if "pattern" in field else []
    texts += [text for one in field.get("anyOf", ()) if (text := bounds_text(one, root))]
    for items in (field.get("items"), field.get("additionalProperties")):
        if isinstance(items, Mapping) and (text := bounds_text(items, root)):
            texts.append(f"each {text}")
    return ", ".join(texts)


def _number_text(value: float) -> str:
    """Return a number in its shortest exact form."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def description_text(facts: Mapping[str, Any]) -> str:
    """Return the result of `description` as text."""
    from metaforge.config.toml_text import flatten

    head = f"{facts['kind']} {facts['name']}  ({facts['distribution']} {facts['version']}, {facts['target']})"
    about = [f"paper: {facts['reference']}"] if facts["reference"] else []
    about += [f"{name.replace('_', ' ')}: {_tag_text(value)}" for name, value in facts["tags"].items()]
    parts = [[head], facts["text"].splitlines(), about, _split_lines(facts), _option_lines(facts)]
    if facts.get("settings"):
        parts.append(["settings:", *(f"  {path} = {value_text(value)}" for path, value in flatten(facts["settings"]))])
    for kind, values in facts["defaults"].items():
        lines = [f"  {path} = {value_text(value)}" for path, value in flatten(values)]
        parts.append([f"suggested settings for {kind}:", *lines])
    parts.append([f"to use it: {facts['command']}"])
    return "\n\n".join("\n".join(printable(line) for line in part) for part in parts if part)


def _split_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return lines with what each split of a data set contains."""
    splits = facts.get("splits", {})
    lines = [f"  {split}: {_split_text(contents)}" for split, contents in splits.items()]
    return ["splits:", *lines] if splits else []


def _split_text(contents: Mapping[str, Any]) -> str:
    if "unavailable" in contents:
        return f"not available: {contents['unavailable']}"
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {value_text(v)}" for k, v in contents.items())


def _option_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return lines with name, type, default, bounds and meaning of each option."""
    if not facts["options"]:
        return ["no options"]
    lines = [f"options, in a run file under [{facts['table']}]:"]
    for option in facts["options"]:
        default = "required" if option["required"] else f"default {value_text(option['default'])}"
        limits = f", {option['bounds']}" if option["bounds"] else ""
        lines += [f"  {option['name']}  ({option['type']}, {default}{limits})", f"      {option['text']}"]
    return lines


def value_text(value: Any) -> str:
    """Return a value as a run file or `--set` would have it; a text needs quotes only with surrounding space."""
    if value is None:
        return "none"
    if isinstance(value, str) and value.strip() == value and value:
        return value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(value_text(one) for one in value)}]"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else json.dumps(value, default=str)


def _tag_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(one) for one in value) or "none" if isinstance(value, (list, tuple)) else str(value)
