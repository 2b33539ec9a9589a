"""Values checked against a pydantic model, and its complaints turned into sentences for a person."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from metaforge.errors import ConfigError, nearest, shown

Model = TypeVar("Model", bound=BaseModel)

_DEPTH, _BITS = 12, 64
# How many of a run file's mistakes are told at once.
_PROBLEMS = 10
# What 64-bit integers and single-precision floats hold.
_INTEGERS, _FLOATS = 2**63, 3e38


def validate(model: type[Model], values: Mapping[str, Any], path: str, origins: Mapping[str, str]) -> Model:
    """Return the model that values mean; raise one `ConfigError` that names every bad value by its dotted path."""
    values = _with_nones(model, values)
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(model, path, details) for details in error.errors(include_url=False)]
    else:
        problems = _misread(path, values, made)
    if problems:
        told, more = problems[:_PROBLEMS], len(problems) - _PROBLEMS
        where = ", ".join(dict.fromkeys(origins.get(dotted, "default") for dotted, _ in told))
        raise ConfigError(
            "\n".join(
                [*(sentence for _, sentence in told), *([f"There are {more} more mistakes."] if more > 0 else [])]
            ),
            where=where,
            remedy="`metaforge describe NAME` lists a plugin's"
            " options, `metaforge config` every value of a run with its origin",
        )
    return made


def check_depth(values: object, origin: str) -> None:
    """Raise `ConfigError` for what no setting can be, before anything walks or shows it.

    That is tables or lists that nest deeper than any setting, and integers of more than 64 bits.
    """
    level: list[tuple[str, Any]] = [("", values)]
    for _ in range(_DEPTH):
        level = [inner for path, one in level for inner in _inside(path, one)]
        for path, one in level:
            if isinstance(one, int) and one.bit_length() > _BITS:
                raise ConfigError(
                    f"{shown(path)} is an integer of {one.bit_length():,} bits, and no setting takes so many.",
                    where=origin,
                    remedy="`metaforge config` prints every setting with its value",
                )
        level = [(path, one) for path, one in level if isinstance(one, (Mapping, list, tuple))]
    if level:
        raise ConfigError(
            f"Tables or lists nest more than {_DEPTH} levels deep.",
            where=origin,
            remedy="no setting does; `metaforge config` prints a run file",
        )


def _inside(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the values of a table or list, each with its dotted path."""
    if isinstance(value, Mapping):
        return [(f"{path}.{key}".lstrip("."), one) for key, one in value.items()]
    return [(path, one) for one in value]


def options(model: type[BaseModel]) -> list[str]:
    """Return the names of a model's options."""
    return list(model.model_fields)


def _problem(model: type[BaseModel], path: str, details: Mapping[str, Any]) -> tuple[str, str]:
    location = [str(part) for part in details["loc"]]
    dotted = ".".join([part for part in (path, *location) if part])
    if details["type"] == "extra_forbidden":
        inner = _inner(model, location[:-1])
        names = options(inner) if inner is not None else []
        known = f" The options of {'.'.join([path, *location[:-1]]).strip('.') or 'a run'} are {', '.join(names)}."
        return dotted, f"There is no option {shown(dotted)}.{nearest(location[-1], names)}{known if names else ''}"
    if details["type"] == "missing":
        return dotted, f"{dotted} is required."
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if details["msg"].startswith("Value error, "):
        return dotted, f"{dotted}: {message}."
    return dotted, f"{dotted} is {shown(details['input'])}, but should be {message}."


def _inner(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """Return the model found at a location inside another."""
    for name in location:
        field = model.model_fields.get(name)
        found = [] if field is None else [one for one in _alternatives(field.annotation) if _is_model(one)]
        if not found:
            return None
        model = found[0]
    return model


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, however it is written; any other annotation is its only member."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(one for member in typing.get_args(annotation) for one in _alternatives(member))
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _with_nones(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with the word `none` read as None where a field may be None: TOML has no null."""
    made = dict(values)
    for name, field in model.model_fields.items():
        members = _alternatives(field.annotation)
        inner = [one for one in members if _is_model(one)]
        if made.get(name) == "none" and type(None) in members:
            made[name] = None
        elif inner and isinstance(made.get(name), Mapping):
            made[name] = _with_nones(inner[0], made[name])
    return made


def _misread(path: str, given: Any, made: Any) -> list[tuple[str, str]]:
    """Return where a truth value was taken for a number or the reverse, and what no setting can hold."""
    if isinstance(given, Mapping):
        pairs = [(f"{path}.{key}".lstrip("."), value, _member(made, key)) for key, value in given.items()]
        return [problem for pair in pairs for problem in _misread(*pair)]
    if isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)) and len(given) == len(made):
        return [problem for one, other in zip(given, made, strict=True) for problem in _misread(path, one, other)]
    if isinstance(given, bool) and isinstance(made, (int, float)) and not isinstance(made, bool):
        return [(path, f"{path} is {given!r}, but should be a number.")]
    if isinstance(made, bool) and isinstance(given, (int, float)) and not isinstance(given, bool):
        return [(path, f"{path} is {given!r}, but should be true or false.")]
    if (isinstance(made, float) and abs(made) > _FLOATS) or (isinstance(made, int) and abs(made) >= _INTEGERS):
        return [(path, f"{path} is {str(given)[:30]}, a number that is too large.")]
    if isinstance(made, str) and not made.isprintable():
        return [(path, f"{path} is {shown(given)}, but should have no control characters.")]
    return []


def _member(made: Any, key: str) -> Any:
    return made.get(key) if isinstance(made, Mapping) else getattr(made, key, None)
