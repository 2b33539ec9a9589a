"""What every plugin must do, of whatever kind: import quietly, keep its contract, and have options that explain."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import MetaForgeError
from metaforge.registry.contract import contract_errors
from metaforge.registry.entry import KINDS
from metaforge.testing.check import check
from metaforge.testing.subject import Subject
from metaforge.testing.toy import ToyClasses, ToyCurves

# Run in a fresh interpreter; what the plugins print while they are imported comes before the last line.
_PROBE = """
import json, sys
modules = sys.argv[1:]
from metaforge.registry.scan import scan
scan().entries()
found = [f"{module} is imported when plugins are merely listed" for module in modules if module in sys.modules]
import importlib, torch
from metaforge.testing.global_state import generator_states
for module in modules:
    before, default = generator_states(), torch.get_default_dtype()
    importlib.import_module(module)
    after = generator_states()
    # Libraries that plugins import draw from Python's generator, which nothing here depends on.
    drawn = [name for name in before if name != "Python's" and before[name] != after[name]]
    found += [f"{module} uses {name} global generator while it is imported" for name in drawn]
    found += [f"{module} changes torch's default type"] if torch.get_default_dtype() != default else []
print()
print(json.dumps(found))
"""


def _not_installed(subject: Subject) -> str:
    return "it is no installed plugin, but a class that was handed over" if subject.entry is None else ""


@check(*KINDS, name="import", unless=_not_installed)
def imported(subject: Subject) -> None:
    """Listing does not import it, and importing it prints nothing and leaves generators and default types alone."""
    assert subject.entry is not None
    assert_quiet([subject.entry.target.partition(":")[0].strip()])


def assert_quiet(modules: Sequence[str]) -> None:
    """Raise `AssertionError` where the import of plugins' modules, in one fresh interpreter, does more than define."""
    done = subprocess.run(
        # A warning of some library that a plugin needs is not the plugin's.
        [sys.executable, "-W", "ignore", "-c", _PROBE, *modules],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said, names = done.stderr.strip().splitlines(), " and ".join(modules)
    assert done.returncode == 0, f"importing {names} ended the interpreter: {said[-1] if said else done.returncode}"
    *printed, last = done.stdout.strip().splitlines()
    found = [*json.loads(last), *([f"{names} prints"] if "".join(printed + said).strip() else [])]
    assert not found, f"{' and '.join(found)}; do nothing at import but define"


@check(*KINDS)
def contract(subject: Subject) -> None:
    """Its class has the members and argument names of its kind's protocol."""
    found = contract_errors(subject.kind, subject.cls)
    assert not found, f"{'; '.join(found)} (docs/protocols.md has the contract)"


@check(*KINDS)
def summary(subject: Subject) -> None:
    """It has a docstring of its own, whose first line says what it does."""
    text = (vars(subject.cls).get("__doc__") or "").strip()
    assert text, f"{subject.cls.__name__} has no docstring; its first line is what `metaforge list-plugins` shows"


@check(*KINDS)
def config(subject: Subject) -> None:
    """Its options have defaults, survive JSON, are all described, numbers are bounded, and unknown ones are refused."""
    options = subject.cls.Config
    made = options()
    assert options.model_validate_json(made.model_dump_json()) == made, "its options come back from JSON otherwise"
    silent = [name for name, field in options.model_fields.items() if not (field.description or "").strip()]
    assert not silent, f"these options have no description: {', '.join(silent)}; write Field(..., description=...)"
    schema = options.model_json_schema()
    loose = sorted({name for name, node in _numbers(schema.get("properties", {}), schema) if not _BOUNDS & node.keys()})
    assert not loose, f"these options take any number: {', '.join(loose)}; bound them with ge, gt, le or lt"
    try:
        options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("an option that does not exist is taken; inherit from metaforge.authoring.protocols.Options")


_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "const", "enum"}


def _numbers(properties: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each node of a JSON Schema that stands for a number, with the name of its option."""
    for name, top in properties.items():
        pending: list[Any] = [top]
        known: set[str] = set()
        while pending:
            node = pending.pop()
            if isinstance(node, list):
                pending += node
            elif isinstance(node, dict):
                if node.get("type") in ("integer", "number"):
                    yield name, node
                # Options may contain their own kind.
                if "$ref" in node and node["$ref"] not in known:
                    known.add(node["$ref"])
                    pending.append(schema["$defs"][node["$ref"].rpartition("/")[2]])
                inside = node.get("properties", {})
                pending += [*inside.values(), *(node.get(key, []) for key in _NESTED)]


_NESTED = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")


@check("learner", "dataset")
def defaults(subject: Subject) -> None:
    """With nothing set but its name it makes a valid run: its `defaults` name what it needs, and options that exist."""
    registry = subject.registry.with_plugin(subject.kind, subject.name, subject.cls)
    for kind, toy in (("classification", ToyClasses), ("regression", ToyCurves)):
        values = {subject.kind: {"name": subject.name}}
        if subject.kind == "learner":
            if kind not in subject.cls.tags.kinds:
                continue
            usual = registry.default(kind)
            values["dataset"] = {"name": "the-kit-s-toy" if usual is None else usual.name}
            registry = registry if usual else registry.with_plugin("dataset", "the-kit-s-toy", toy)
        elif subject.cls.kind != kind:
            continue
        try:
            resolve([Layer("the check", values)], registry, complete=subject.kind == "learner")
        except MetaForgeError as error:
            raise AssertionError(f"its defaults for {kind} make no valid run: {error}") from error
