"""Checks of all kinds of plugins: imports without side effects, the contract of the kind, docstring and options.

One file for all kinds, because these checks look at the class and its options only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from metaforge.authoring.kinds import task_kind
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import MetaForgeError
from metaforge.registry.contract import contract_errors
from metaforge.registry.entry import KINDS
from metaforge.registry.registry import Registry
from metaforge.testing.check import check
from metaforge.testing.subject import Subject
from metaforge.testing.toy import TOYS, ToyDescent, ToyLearner, ToyNet

# Runs in a new interpreter. Its last line of output is the result; anything before it was printed by the imports.
_PROBE = """
import json, sys
modules = sys.argv[1:]
from metaforge.registry.scan import scan
scan().entries()
problems = [f"{module} is imported when plugins are listed" for module in modules if module in sys.modules]
import importlib, torch
from metaforge.testing.global_state import generator_states
for module in modules:
    before, default = generator_states(), torch.get_default_dtype()
    importlib.import_module(module)
    after = generator_states()
    # Some libraries draw from Python's generator on import; no result of MetaForge depends on that generator.
    drawn = [name for name in before if name != "Python's" and before[name] != after[name]]
    problems += [f"{module} uses {name} global generator on import" for name in drawn]
    problems += [f"{module} changes torch's default dtype"] if torch.get_default_dtype() != default else []
print()
print(json.dumps(problems))
"""


def _not_installed(subject: Subject) -> str:
    return "it is a class without an entry point, so there is no module to import" if subject.entry is None else ""


@check(*KINDS, name="import", skip_reason=_not_installed)
def imported(subject: Subject) -> None:
    """Listing plugins does not import it, and its import prints nothing and changes no generator or default dtype."""
    assert subject.entry is not None
    assert_import_without_side_effects([subject.entry.target.partition(":")[0].strip()])


def assert_import_without_side_effects(modules: Sequence[str]) -> None:
    """Import modules in one new interpreter; raise `AssertionError` if that prints or changes global state."""
    done = subprocess.run(
        # Warnings are ignored, because libraries that a plugin imports may emit them.
        [sys.executable, "-W", "ignore", "-c", _PROBE, *modules],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    errors, names = done.stderr.strip().splitlines(), " and ".join(modules)
    assert done.returncode == 0, (
        f"importing {names} ended the interpreter: {errors[-1] if errors else f'exit code {done.returncode}'}; a module"
        " should only define classes and functions on import"
    )
    *printed, last = done.stdout.strip().splitlines()
    problems = [*json.loads(last), *([f"{names} prints on import"] if "".join(printed + errors).strip() else [])]
    assert not problems, f"{' and '.join(problems)}; a module should only define classes and functions on import"


@check(*KINDS)
def contract(subject: Subject) -> None:
    """Its class has the members and argument names of the protocol of its kind."""
    problems = contract_errors(subject.kind, subject.cls)
    assert not problems, (
        f"{'; '.join(problems)}; change the class to match the {subject.kind} protocol (see docs/protocols.md)"
    )


@check(*KINDS)
def summary(subject: Subject) -> None:
    """Its class has a docstring of its own, whose first line describes it."""
    text = (vars(subject.cls).get("__doc__") or "").strip()
    assert text, (
        f"{subject.cls.__name__} has no docstring; write one, since `metaforge list-plugins` shows its first line"
    )


@check(*KINDS)
def config(subject: Subject) -> None:
    """Its options have defaults, descriptions and bounds, can be saved as JSON, and unknown options are rejected."""
    options = subject.cls.Config
    defaults = options()
    assert options.model_validate_json(defaults.model_dump_json()) == defaults, (
        "the default options change when they are saved as JSON and loaded; use types that JSON can represent"
    )
    undescribed = [name for name, field in options.model_fields.items() if not (field.description or "").strip()]
    assert not undescribed, (
        f"these options have no description: {', '.join(undescribed)}; write Field(..., description=...)"
    )
    schema = options.model_json_schema()
    numbers = _number_schemas(schema.get("properties", {}), schema)
    unbounded = sorted({name for name, node in numbers if not _BOUNDS & node.keys()})
    assert not unbounded, (
        f"these options accept any number: {', '.join(unbounded)}; set bounds with ge, gt, le or lt in their Field"
    )
    try:
        options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError(
        "Config accepts an option that does not exist; derive it from metaforge.authoring.Options, which rejects it"
    )


_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "const", "enum"}


def _number_schemas(properties: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each node of a JSON schema that describes a number, with the name of its option."""
    for name, top in properties.items():
        pending: list[Any] = [top]
        visited: set[str] = set()
        while pending:
            node = pending.pop()
            if isinstance(node, list):
                pending += node
            elif isinstance(node, dict):
                if node.get("type") in ("integer", "number"):
                    yield name, node
                # A type of options may refer to itself, so each reference is followed once.
                if "$ref" in node and node["$ref"] not in visited:
                    visited.add(node["$ref"])
                    pending.append(schema["$defs"][node["$ref"].rpartition("/")[2]])
                inside = node.get("properties", {})
                pending += [*inside.values(), *(node.get(key, []) for key in _NESTED)]


_NESTED = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")


@check("preset")
def settings(subject: Subject) -> None:
    """A run that it is chosen for is valid: its settings exist and are within their bounds."""
    chosen = subject.cls.settings
    complete = {"learner", "dataset"} <= chosen.keys()
    registry = subject.registry.with_plugin("preset", subject.name, subject.cls)
    try:
        resolve([Layer("the conformance kit", {"presets": [subject.name]})], registry, complete=complete)
    except MetaForgeError as error:
        raise AssertionError(f"its settings do not give a valid run; correct them: {error}") from error


@check("learner", "dataset", "adapter", "regularizer")
def defaults(subject: Subject) -> None:
    """A run that sets only its name is valid: its `defaults` name all plugins that it needs, and existing options."""
    registry = subject.registry.with_plugin(subject.kind, subject.name, subject.cls)
    if subject.kind == "dataset":
        _resolve(task_kind(subject.cls.kind).name, {"dataset": {"name": subject.name}}, registry)
    elif subject.kind == "learner":
        tags = subject.cls.tags
        kinds = tags.kinds | (subject.cls.defaults.keys() if tags.other_kinds else set())
        for kind in sorted(kinds & TOYS.keys()):
            _resolve(kind, {"learner": {"name": subject.name}}, registry, backbone="backbone" in tags.needs)
    else:
        registry = registry.with_plugin("learner", "toy-learner", ToyLearner).with_plugin("adapter", "toy", ToyDescent)
        own = {"adapters": ["toy"], f"{subject.kind}s": [subject.name]}
        for kind in sorted(subject.cls.defaults.keys() & ToyLearner.tags.kinds):
            _resolve(kind, {"learner": {"name": "toy-learner"}, **own}, registry, backbone=True)


def _resolve(kind: str, values: Mapping[str, Any], registry: Registry, *, backbone: bool = False) -> None:
    """Check that these values give a valid run with tasks of a kind.

    Where the kind has no default data set, it is that of the toys, with the toys' network if there is a `backbone`:
    which backbone is usual is the choice of the data set.
    """
    if "dataset" not in values and (dataset := registry.default(kind)) is not None:
        values = {**values, "dataset": {"name": dataset.name}}
    elif "dataset" not in values:
        values = {**values, "dataset": {"name": "toy-tasks"}, **({"backbone": "toy-net"} if backbone else {})}
        registry = registry.with_plugin("dataset", "toy-tasks", TOYS[kind]).with_plugin("backbone", "toy-net", ToyNet)
    try:
        resolve([Layer("the conformance kit", values)], registry, complete="learner" in values)
    except MetaForgeError as error:
        raise AssertionError(f"its defaults for {kind} do not give a valid run; correct them: {error}") from error
