"""Rows 15 and 16: what people mistype in a run file or on the command line, and values that no setting has."""

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
from tests.reliability.rows import Measured, Room, row

NEIGHBOURS = dict(zip("abcdefghijklmnopqrstuvwxyz_0123456789", "snvfrdghkjmlkmbipwtdyvyesxc-12345678-", strict=True))

# A number that Python reads, and does not write.
HEXADECIMAL = "0x" + "f" * 5000


def written(content: dict[str, Any]) -> str:
    """Return a run file; what stands for the long number in it becomes that number."""
    return tomli_w.dumps(content).replace(f'"{HEXADECIMAL}"', HEXADECIMAL)


@dataclass(frozen=True)
class Field:
    """One setting: the table that it is in, its name, its type, and the run file that makes it mean something."""

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
        content: dict[str, Any] = {key: dict(one) for key, one in self.base.items()}
        inner = content
        for part in self.table:
            inner[part] = inner = dict(inner.get(part, {}))
        inner[name] = value
        return content

    def arguments(self, name: str, value: Any) -> list[str]:
        """Return the same as arguments of a command."""
        chosen = [
            f"{table}={next(iter(one))}" if table in SETS else f"{table}.name={one['name']}"
            for table, one in self.base.items()
        ]
        tables = {str({"a": 1}): "{a = 1}", "{}": "{}"}
        text = tables.get(str(value)) or written({"v": value}).partition("=")[2].strip()
        settings = [*chosen, f"{'.'.join((*self.table, name))}={text}"]
        return [part for setting in settings for part in ("--set", setting)]


def fields() -> list[Field]:
    """Return every setting of every schema: the sections', and the options of every installed plugin."""
    found = [Field((), name, RunConfig, {}) for name in RunConfig.model_fields]
    for table, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += [Field((table,), name, info.annotation, {}) for name in info.annotation.model_fields]
    registry = scan()
    for kind, table in (*((key, key) for key in SINGLES), *((kind, key) for key, kind in SETS.items())):
        for plugin in registry.names(kind):
            model = registry.load(kind, plugin).Config
            place = (table,) if table in SINGLES else (table, plugin)
            base = {table: {"name": plugin} if table in SINGLES else {plugin: {}}}
            found += [Field(place, name, model, base) for name in model.model_fields]
    return found


def typos(name: str, draw: np.random.Generator) -> Iterator[str]:
    """Yield a name with a letter left out, doubled, exchanged with the next, and replaced by its neighbour."""
    place = int(draw.integers(len(name)))
    yield name[:place] + name[place + 1 :]
    yield name[: place + 1] + name[place:]
    place = int(draw.integers(max(1, len(name) - 1)))
    yield name[:place] + name[place + 1 : place + 2] + name[place : place + 1] + name[place + 2 :]
    place = int(draw.integers(len(name)))
    yield name[:place] + NEIGHBOURS[name[place]] + name[place + 1 :]


def answer(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code and all that `metaforge config` says; an exception that escapes has the code -1."""
    result = CliRunner().invoke(app, ["config", "--json", *arguments])
    escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (-1 if escaped else result.exit_code), result.stdout if result.exit_code == 0 else result.output


def both_ways(folder: Path, field: Field, name: str, value: Any) -> Iterator[tuple[int, str]]:
    """Yield what comes of a setting in a file, and of the same on the command line."""
    path = folder / "run.toml"
    path.write_text(written(field.file(name, value)), "utf-8")
    yield answer(["--config", str(path)])
    yield answer(field.arguments(name, value))


def mistyped(seed: int) -> list[tuple[Field, str]]:
    """Return four mistyped names of every setting, in random order; those that are settings themselves are left out."""
    draw = np.random.default_rng(seed)
    found = [(field, typo) for field in fields() for typo in dict.fromkeys(typos(field.name, draw))]
    known = {field.model: [*field.model.model_fields, "name"] for field, _ in found}
    known[RunConfig] += [*SINGLES, *SETS]
    usable = [(field, typo) for field, typo in found if typo and typo not in known[field.model]]
    return [usable[index] for index in draw.permutation(len(usable))]


@row(15, "one typo in a setting's name", goal="100 % refused, at least 95 % right first suggestion, no traceback")
def typing_mistakes(room: Room, *, count: int = 10_000, seed: int = 15) -> Measured:
    """Mistype settings, in a file and on the command line, and read what is answered."""
    cases = mistyped(seed)[:count]
    refused, right, tried, wrong = 0, 0, 0, []
    for index in room.counted(len(cases)):
        field, typo = cases[index]
        for code, said in both_ways(room.folder, field, typo, 1):
            tried += 1
            refused += code == 2 and "Traceback" not in said
            good = f"Did you mean {field.name!r}?" in said
            right += good
            if not good:
                wrong.append(f"{'.'.join((*field.table, typo))} for {field.name}")
    share = right / max(tried, 1)
    numbers = {"tried": tried, "settings": len(fields()), "refused": refused, "right_suggestions": right}
    return Measured(
        tried == 2 * len(cases) and refused == tried and share >= 0.95,
        f"{refused} of {tried} refused ({numbers['settings']} settings), {100 * share:.1f} % with the right suggestion",
        {**numbers, "without_suggestion": sorted(set(wrong))},
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
    "text of a number": "1e-3",
    "text of a whole number": "3",
    "text of infinity": "inf",
    "empty text": "",
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
    "list of truth": [True],
    "table": {"a": 1},
    "empty table": {},
    "date": datetime.date(2026, 1, 1),
}

COERCIONS = {
    "a whole float stands for an integer": lambda given, made: type(given) is float and type(made) is int,
    "an integer stands for a float": lambda given, made: type(given) is int and type(made) is float,
    "the text of a number stands for it": lambda given, made: (
        isinstance(given, str) and type(made) in (int, float) and float(given) == made
    ),
    "yes, no, on, off, true, false and such words stand for truth values": lambda given, made: (
        isinstance(given, str) and type(made) is bool
    ),
    "a date on the command line is a text": lambda given, made: type(given) is datetime.date and made == str(given),
    "the word none stands for a value that is not set": lambda given, made: given == "none" and made is None,
}


def meant(given: Any, made: Any) -> str | None:
    """Return how an accepted value was read: `as it is`, a documented coercion, or None where it is neither."""
    same = type(given) is type(made) and given == made
    if isinstance(given, list) and isinstance(made, (list, tuple)):
        same = [type(one) for one in given] == [type(one) for one in made] and given == list(made)
        same = same or all(type(one) is int and float(one) == other for one, other in zip(given, made, strict=True))
    if same:
        return "as it is"
    return next((name for name, test in COERCIONS.items() if test(given, made)), None)


def suspicious(field: Field, value: Any) -> bool:
    """Return whether an accepted value is one that no setting should have: not finite, astronomic, or a bare NUL."""
    if isinstance(value, (list, tuple)):
        return any(suspicious(field, one) for one in value)
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


def judged(folder: Path, field: Field, value: Any) -> Iterator[str]:
    """Yield for each way to say it how a value is taken: `refused`, how it was read, or what is wrong with that."""
    for code, said in both_ways(folder, field, field.name, value):
        if "Traceback" in said or code not in (0, 2):
            yield f"fault: exit code {code}: {said.strip()[:200]}"
        elif code == 2:
            yield "refused" if "where" in said or "remedy" in said else f"fault: no help: {said.strip()[:200]}"
        else:
            made: Any = json.loads(said)["values"]
            for part in (*field.table, field.name):
                made = made[part]
            if isinstance(made, dict):
                yield "as it is" if value == {} else "fault: a section was made of it"
                continue
            read = None if suspicious(field, made) else meant(value, made)
            yield read or f"fault: {value!r:.60} was read as {made!r:.60}"


@row(16, "NaN, infinities, truth values, texts, negative and huge values", goal="100 % refused or documented coercion")
def senseless_values(room: Room, *, count: int = 100_000, seed: int = 16) -> Measured:
    """Give every setting every value that could be mistaken for another, in a file and on the command line."""
    cases = [(field, name) for field in fields() for name in VALUES]
    order = np.random.default_rng(seed).permutation(len(cases))[:count]
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for index in room.counted(len(order)):
        field, name = cases[order[index]]
        for outcome in judged(room.folder, field, VALUES[name]):
            outcomes["fault" if outcome.startswith("fault") else outcome] += 1
            if outcome.startswith("fault"):
                faults.append(f"{field.path} = {name}: {outcome}")
    tried = sum(outcomes.values())
    return Measured(
        tried == 2 * len(order) and not faults,
        f"of {tried} values {outcomes['refused']} refused, {outcomes['as it is']} right for their setting,"
        f" {tried - outcomes['refused'] - outcomes['as it is'] - outcomes['fault']} coerced as documented",
        {"tried": tried, "outcomes": dict(outcomes), "coercions": sorted(COERCIONS), "faults": faults[:50]},
    )
