"""Validating values with a pydantic model; all invalid values are reported in one `ConfigError`, in plain sentences."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from metaforge.config import paths
from metaforge.config.problems import location_in, sentence
from metaforge.errors import ConfigError, nearest, shown

Model = TypeVar("Model", bound=BaseModel)

# The most levels that settings nest, and the most bits of an integer setting.
_MAX_DEPTH, _MAX_BITS = 12, 64
# The most invalid values that one message reports.
_MAX_PROBLEMS = 10
# Bounds of what 64-bit signed integers and single-precision floats can hold.
_MAX_INTEGER, _MAX_FLOAT = 2**63, 3e38


def validate(model: type[Model], values: Mapping[str, Any], path: str, origins: Mapping[str, str]) -> Model:
    """Return an instance of a model with these values.

    Args:
        model: The pydantic model, such as the `Config` of a plugin.
        values: The values, as they are read from TOML: the word `none` stands for None.
        path: The dotted path of the table that the values are in.
        origins: The origin of each value, by dotted path.

    Raises:
        ConfigError: Some values are invalid; the message names each of them, up to ten, by its dotted path.
    """
    values = _with_nones(model, values)
    remedy = (
        "`metaforge describe NAME` lists a plugin's options, `metaforge config` every value of a run with its origin"
    )
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        problems = _problems(model, path, values, error)
        if quoted := next(_without_quotes(model, path, values, error), None):
            remedy = f"write a key that contains a dot in quotes: '{quoted}=VALUE' (the outer quotes are for the shell)"
    else:
        problems = _misread_values(path, values, result)
    if problems:
        reported, more = problems[:_MAX_PROBLEMS], len(problems) - _MAX_PROBLEMS
        sentences = [sentence for _, sentence in reported]
        raise ConfigError(
            "\n".join([*sentences, *([f"There are {more} more errors."] if more > 0 else [])]),
            where=", ".join(dict.fromkeys(_origin(dotted, origins) for dotted, _ in reported)),
            remedy=remedy,
        )
    return result


def check_bounds(values: object, origin: str) -> None:
    """Raise `ConfigError` for values that nest too deep or have an integer of more than 64 bits.

    This must come first: recursion over deep nesting, and printing a huge integer, would raise in the middle of other
    code.
    """
    level: list[tuple[str, Any]] = [("", values)]
    for _ in range(_MAX_DEPTH):
        level = [inner for path, value in level for inner in _children(path, value)]
        for path, value in level:
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ConfigError(
                    f"{shown(path)} is an integer of {value.bit_length():,} bits, but no setting takes more than"
                    f" {_MAX_BITS}.",
                    where=origin,
                    remedy="`metaforge config` prints every setting with its value",
                )
        level = [(path, value) for path, value in level if isinstance(value, (Mapping, list, tuple))]
    if level:
        raise ConfigError(
            f"Tables or lists nest more than {_MAX_DEPTH} levels deep.",
            where=origin,
            remedy="no setting does; `metaforge config` prints a run file",
        )


def _children(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the values in a table or list, each with its dotted path."""
    if isinstance(value, Mapping):
        return [(_dotted(path, (str(key),)), inner) for key, inner in value.items()]
    return [(path, inner) for inner in value]


def _dotted(path: str, keys: Sequence[str]) -> str:
    """Return the path of a value by the keys that lead to it from the table at `path`, which may be empty."""
    return ".".join([*([path] if path else []), *map(paths.quoted, keys)])


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """Return the origin of the value at a dotted path; that of the first value in it for a table."""
    inside = (origin for known, origin in origins.items() if known.startswith(f"{path}."))
    return origins.get(path) or next(inside, "default")


def _without_quotes(
    model: type[BaseModel], path: str, values: Mapping[str, Any], error: ValidationError
) -> Iterator[str]:
    """Yield the paths that are meant where a key with dots, such as a pattern, was read as tables in one another."""
    for details in error.errors(include_url=False):
        location = location_in(values, details)
        # The last key is an unknown one in a value of a table, whose own key has a name of the user's choice.
        field = _field_at(model, location[:-2])
        if details["type"] != "extra_forbidden" or field is None or not _models(field.annotation)[1]:
            continue
        keys, value = [location[-2]], _inside(values, location[:-1])
        known = _models(field.annotation)[1][0].model_fields
        while isinstance(value, Mapping) and value:
            key = location[-1] if len(keys) == 1 else next(iter(value))
            keys, value = [*keys, str(key)], value[key]
        if len(keys) > 2 and keys[-1] in known:
            yield _dotted(path, (*location[:-2], ".".join(keys[:-1]), keys[-1]))


def _inside(values: Any, location: Sequence[str]) -> Any:
    for key in location:
        values = values[key]
    return values


def _field_at(model: type[BaseModel], location: Sequence[str]) -> FieldInfo | None:
    """Return the field at a path of field names inside a model, or None if there is none."""
    inner = _model_at(model, location[:-1]) if location else None
    return None if inner is None else inner.model_fields.get(location[-1])


def _problems(
    model: type[BaseModel], path: str, values: Mapping[str, Any], error: ValidationError
) -> list[tuple[str, str]]:
    """Return the dotted path of each invalid value and a sentence on it."""
    by_location: dict[tuple[str, ...], list[Any]] = {}
    for details in error.errors(include_url=False):
        by_location.setdefault(location_in(values, details), []).append(details)
    return [_problem(model, path, location, errors) for location, errors in by_location.items()]


def _problem(model: type[BaseModel], path: str, location: tuple[str, ...], errors: list[Any]) -> tuple[str, str]:
    """Return the dotted path of an invalid value and a sentence on it, from the errors of pydantic at its location."""
    dotted = _dotted(path, location)
    kinds = [details["type"] for details in errors]
    if "extra_forbidden" in kinds:
        inner = _model_at(model, location[:-1])
        names = list(inner.model_fields) if inner is not None else []
        table = _dotted(path, location[:-1]) or "a run"
        known = f" The options of {table} are {', '.join(names)}."
        return dotted, f"There is no option {shown(dotted)}.{nearest(location[-1], names)}{known if names else ''}"
    if "missing" in kinds:
        return dotted, f"{dotted} is required."
    return dotted, sentence(dotted, errors)


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """Return the nested model at a path of field names inside a model, or None if there is none."""
    names = list(location)
    while names:
        field = model.model_fields.get(names.pop(0))
        models, tables = ([], []) if field is None else _models(field.annotation)
        if not models and tables and names:
            models = tables
            del names[0]
        if not models:
            return None
        model = models[0]
    return model


def _models(annotation: Any) -> tuple[list[type[BaseModel]], list[type[BaseModel]]]:
    """Return the models among the members of a type, and those that are the values of a table among them."""
    members = _alternatives(annotation)
    values = [typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict]
    return [member for member in members if _is_model(member)], [value for value in values if _is_model(value)]


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union type, however it is written; any other annotation is its only member."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(annotation) for inner in _alternatives(member))
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _with_nones(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with None in place of the word `none`, for the fields that accept None: TOML has no null."""
    result = dict(values)
    for name, field in model.model_fields.items():
        value, (models, tables) = result.get(name), _models(field.annotation)
        if value == "none" and type(None) in _alternatives(field.annotation):
            result[name] = None
        elif models and isinstance(value, Mapping):
            result[name] = _with_nones(models[0], value)
        elif tables and isinstance(value, Mapping):
            result[name] = {
                key: _with_nones(tables[0], inner) if isinstance(inner, Mapping) else inner
                for key, inner in value.items()
            }
    return result


def _misread_values(path: str, value: Any, result: Any) -> list[tuple[str, str]]:
    """Return the path of each value that pydantic accepts although it should not, and a sentence on it.

    pydantic takes true for 1 and 1 for true. Numbers that torch cannot hold, and control characters, are errors too.
    `value` is the value before validation, `result` after it.
    """
    if isinstance(value, Mapping):
        triples = [(_dotted(path, (key,)), inner, _member(result, key)) for key, inner in value.items()]
        return [problem for triple in triples for problem in _misread_values(*triple)]
    if isinstance(value, (list, tuple)) and isinstance(result, (list, tuple)) and len(value) == len(result):
        pairs = zip(value, result, strict=True)
        return [problem for before, after in pairs for problem in _misread_values(path, before, after)]
    if isinstance(value, bool) and isinstance(result, (int, float)) and not isinstance(result, bool):
        return [(path, f"{path} is {value!r}, but should be a number.")]
    if isinstance(result, bool) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(path, f"{path} is {value!r}, but should be true or false.")]
    if (isinstance(result, float) and abs(result) > _MAX_FLOAT) or (
        isinstance(result, int) and abs(result) >= _MAX_INTEGER
    ):
        return [(path, f"{path} is {str(value)[:30]}, a number that is too large.")]
    if isinstance(result, str) and not result.isprintable():
        return [(path, f"{path} is {shown(value)}, but should have no control characters.")]
    return []


def _member(container: Any, key: str) -> Any:
    return container.get(key) if isinstance(container, Mapping) else getattr(container, key, None)
