"""Rows 15 and 16: misspelled settings and invalid values, in a run file and on the command line."""

from __future__ import annotations

import datetime
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from pydantic import BaseModel
from typer.testing import CliRunner

from metaforge.cli.app import app
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES
from metaforge.registry.scan import scan
from tests.reliability.rows import Measured, Workspace, row

NEIGHBOURS = dict(zip("abcdefghijklmnopqrstuvwxyz_0123456789", "snvfrdghkjmlkmbipwtdyvyesxc-12345678-", strict=True))

# A number that Python parses, but refuses to print: it has more than 4,300 decimal digits.
HEXADECIMAL = "0x" + "f" * 5000


def as_toml(content: dict[str, Any]) -> str:
    """Return a run file as TOML, with the long number unquoted."""
    return tomli_w.dumps(content).replace(f'"{HEXADECIMAL}"', HEXADECIMAL)


@dataclass(frozen=True)
class Field:
    """One setting: its table, its name, the schema of the table, and the smallest run file in which it is valid."""

    table: tuple[str, ...]
    name: str
    model: type[BaseModel]
    base: dict[str, Any]

    @property
    def path(self) -> str:
        """The dotted path of the setting."""
        return ".".join((*self.table, self.name))

    def file(self, name: str, value: Any) -> dict[str, Any]:
        """Return a run file in which the setting has another name or value."""
        content: dict[str, Any] = {key: dict(item) for key, item in self.base.items()}
        inner = content
        for part in self.table:
            inner[part] = inner = dict(inner.get(part, {}))
        inner[name] = value
        return content

    def arguments(self, name: str, value: Any) -> list[str]:
        """Return the same settings as arguments of a command."""
        chosen = [
            f"{table}={next(iter(item))}" if table in SETS else f"{table}.name={item['name']}"
            for table, item in self.base.items()
        ]
        tables = {str({"a": 1}): "{a = 1}", "{}": "{}"}
        text = tables.get(str(value)) or as_toml({"v": value}).partition("=")[2].strip()
        settings = [*chosen, f"{'.'.join((*self.table, name))}={text}"]
        return [part for setting in settings for part in ("--set", setting)]


def fields() -> list[Field]:
    """Return every setting of every section, and every option of every installed plugin."""
    settings = [Field((), name, RunConfig, {}) for name in RunConfig.model_fields]
    for table, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            settings += [Field((table,), name, info.annotation, {}) for name in info.annotation.model_fields]
    registry = scan()
    for kind, table in (*((key, key) for key in SINGLES), *((kind, key) for key, kind in SETS.items())):
        for plugin in registry.names(kind):
            model = registry.load(kind, plugin).Config
            place = (table,) if table in SINGLES else (table, plugin)
            base = {table: {"name": plugin} if table in SINGLES else {plugin: {}}}
            settings += [Field(place, name, model, base) for name in model.model_fields]
    return settings


def misspellings(name: str, generator: np.random.Generator) -> Iterator[str]:
    """Yield a name with one letter omitted, doubled, swapped with the next, and replaced by its keyboard neighbour."""
    place = int(generator.integers(len(name)))
    yield name[:place] + name[place + 1 :]
    yield name[: place + 1] + name[place:]
    place = int(generator.integers(max(1, len(name) - 1)))
    yield name[:place] + name[place + 1 : place + 2] + name[place : place + 1] + name[place + 2 :]
    place = int(generator.integers(len(name)))
    yield name[:place] + NEIGHBOURS[name[place]] + name[place + 1 :]


def run_config(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code and the output of `metaforge config`; the code is -1 for an exception that escapes."""
    result = CliRunner().invoke(app, ["config", "--json", *arguments])
    escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (-1 if escaped else result.exit_code), result.stdout if result.exit_code == 0 else result.output


def outputs_both_ways(folder: Path, field: Field, name: str, value: Any) -> Iterator[tuple[int, str]]:
    """Yield exit code and output for a setting in a run file, and for the same setting on the command line."""
    path = folder / "run.toml"
    path.write_text(as_toml(field.file(name, value)), "utf-8")
    yield run_config(["--config", str(path)])
    yield run_config(field.arguments(name, value))


def misspelled_settings(seed: int) -> list[tuple[Field, str]]:
    """Return four misspelled names of every setting, in random order, without those that are other settings."""
    generator = np.random.default_rng(seed)
    settings = [
        (field, misspelling) for field in fields() for misspelling in dict.fromkeys(misspellings(field.name, generator))
    ]
    known = {field.model: [*field.model.model_fields, "name"] for field, _ in settings}
    known[RunConfig] += [*SINGLES, *SETS]
    usable = [
        (field, misspelling) for field, misspelling in settings if misspelling and misspelling not in known[field.model]
    ]
    return [usable[index] for index in generator.permutation(len(usable))]


@row(
    15,
    "one typo in the name of a setting",
    goal="100 % refused, the first suggestion is right in at least 95 %, no traceback",
)
def typing_mistakes(workspace: Workspace, *, count: int = 10_000, seed: int = 15) -> Measured:
    """Misspell settings in a run file and on the command line, and check the error messages."""
    cases = misspelled_settings(seed)[:count]
    refused, right, tried, not_suggested = 0, 0, 0, []
    for index in workspace.indices(len(cases)):
        field, misspelling = cases[index]
        for code, output in outputs_both_ways(workspace.folder, field, misspelling, 1):
            tried += 1
            refused += code == 2 and "Traceback" not in output
            suggested = f"Did you mean {field.name!r}?" in output
            right += suggested
            if not suggested:
                not_suggested.append(f"{'.'.join((*field.table, misspelling))} for {field.name}")
    share = right / max(tried, 1)
    numbers = {"tried": tried, "settings": len(fields()), "refused": refused, "right_suggestions": right}
    return Measured(
        tried == 2 * len(cases) and refused == tried and share >= 0.95,
        f"{refused} of {tried} refused ({numbers['settings']} settings), {100 * share:.1f} % with the right suggestion",
        {**numbers, "without_suggestion": sorted(set(not_suggested))},
    )


VALUES: dict[str, Any] = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "true": True,
    "false": False,
    "one": 1,
    "whole float": 3.0,
    "fraction": 2.5,
    "string of a number": "1e-3",
    "string of an integer": "3",
    "string of infinity": "inf",
    "empty string": "",
    "NUL": "\0",
    "word": "word",
    "yes": "yes",
    "none": "none",
    "negative": -1,
    "negative fraction": -0.5,
    "huge negative": -(10**30),
    "huge": 10**30,
    "astronomic": 10**400,
    "hexadecimal of 5,000 digits": HEXADECIMAL,
    "huge fraction": 1.5e308,
    "list": [1],
    "empty list": [],
    "list of lists": [[]],
    "list of infinity": [math.inf],
    "list of a boolean": [True],
    "table": {"a": 1},
    "empty table": {},
    "date": datetime.date(2026, 1, 1),
}

COERCIONS = {
    "a whole float is read as an integer": lambda value, result: type(value) is float and type(result) is int,
    "an integer is read as a float": lambda value, result: type(value) is int and type(result) is float,
    "the string of a number is read as the number": lambda value, result: (
        isinstance(value, str) and type(result) in (int, float) and float(value) == result
    ),
    "yes, no, on, off, true and false as strings are read as booleans": lambda value, result: (
        isinstance(value, str) and type(result) is bool
    ),
    "a date on the command line is read as a string": lambda value, result: (
        type(value) is datetime.date and result == str(value)
    ),
    "the string none is read as a value that is not set": lambda value, result: value == "none" and result is None,
}


def how_read(value: Any, result: Any) -> str | None:
    """Return how an accepted value was read: `as it is`, the name of a documented coercion, or None for neither."""
    same = type(value) is type(result) and value == result
    if isinstance(value, list) and isinstance(result, (list, tuple)):
        same = [type(item) for item in value] == [type(item) for item in result] and value == list(result)
        same = same or all(
            type(item) is int and float(item) == other for item, other in zip(value, result, strict=True)
        )
    if same:
        return "as it is"
    return next((name for name, test in COERCIONS.items() if test(value, result)), None)


def suspicious(field: Field, value: Any) -> bool:
    """Return whether an accepted value must not be accepted: non-finite, too large, or an empty string or NUL."""
    if isinstance(value, (list, tuple)):
        return any(suspicious(field, item) for item in value)
    if isinstance(value, float):
        return not abs(value) < 4e38
    if isinstance(value, int):
        return abs(value) >= 2**63
    free_text = str in alternatives(field.model.model_fields[field.name].annotation)
    return isinstance(value, str) and (value in ("", "\0")) and free_text


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other annotation is its only member."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def outcomes_of(folder: Path, field: Field, value: Any) -> Iterator[str]:
    """Yield, in a run file and on the command line, `refused`, how a value was read, or `fault: ...`."""
    for code, output in outputs_both_ways(folder, field, field.name, value):
        if "Traceback" in output or code not in (0, 2):
            yield f"fault: exit code {code}: {output.strip()[:200]}"
        elif code == 2:
            yield "refused" if "where" in output or "remedy" in output else f"fault: no remedy: {output.strip()[:200]}"
        else:
            result: Any = json.loads(output)["values"]
            for part in (*field.table, field.name):
                result = result[part]
            if isinstance(result, dict):
                yield "as it is" if value == {} else "fault: it was read as a table"
                continue
            reading = None if suspicious(field, result) else how_read(value, result)
            yield reading or f"fault: {value!r:.60} was read as {result!r:.60}"


@row(
    16,
    "NaN, infinities, booleans, strings, negative and huge values for every setting",
    goal="100 % refused or coerced as documented",
)
def senseless_values(workspace: Workspace, *, count: int = 100_000, seed: int = 16) -> Measured:
    """Set every setting to values of every type and size, in a run file and on the command line."""
    cases = [(field, name) for field in fields() for name in VALUES]
    order = np.random.default_rng(seed).permutation(len(cases))[:count]
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for index in workspace.indices(len(order)):
        field, name = cases[order[index]]
        for outcome in outcomes_of(workspace.folder, field, VALUES[name]):
            outcomes["fault" if outcome.startswith("fault") else outcome] += 1
            if outcome.startswith("fault"):
                faults.append(f"{field.path} = {name}: {outcome}")
    tried = sum(outcomes.values())
    return Measured(
        tried == 2 * len(order) and not faults,
        f"of {tried} values {outcomes['refused']} refused, {outcomes['as it is']} valid for their setting,"
        f" {tried - outcomes['refused'] - outcomes['as it is'] - outcomes['fault']} coerced as documented",
        {"tried": tried, "outcomes": dict(outcomes), "coercions": sorted(COERCIONS), "faults": faults[:50]},
    )
