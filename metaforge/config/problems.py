"""Sentences on invalid values, from the errors of pydantic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaforge.errors import shown

# What a value should be, by pydantic's type of the error, where its message does not say it in the words of a run file.
# `{...}` is a value of the error's context. pydantic lists the types: docs.pydantic.dev, "Validation Errors".
_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "string_too_short": "a string of at least {min_length} characters",
    "string_too_long": "a string of at most {max_length} characters",
    "string_pattern_mismatch": "a string that matches the regular expression {pattern}",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
    "none_required": "none",
    "path_type": "a path",
    "path_not_file": "the path of a file that exists",
    "path_not_directory": "the path of a folder that exists",
    "path_exists": "a path at which nothing exists yet",
    "url_type": "a URL",
}
_PREFIX = "Input should be "


def expected(details: Mapping[str, Any]) -> str:
    """Return what a value should be, to follow "but should be", or an empty string if the error does not say it."""
    kind, message, context = details["type"], str(details["msg"]), details.get("ctx", {})
    if kind in _EXPECTED:
        phrase = _EXPECTED[kind].format_map(context)
        if context.get("field_type") == "Dictionary":
            phrase = phrase.replace("a list", "a table").replace("items", "entries")
        if 1 in (context.get("min_length"), context.get("max_length")):
            phrase = phrase.replace("characters", "character").replace("items", "item").replace("entries", "entry")
        return phrase
    if not message.startswith(_PREFIX):
        return ""
    phrase = message.removeprefix(_PREFIX)
    # After the comma pydantic says where its parser failed: "a valid date, input is too short".
    return phrase.partition(", ")[0] if kind.endswith("_parsing") else phrase


def sentence(dotted: str, errors: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on the invalid value at a dotted path; a value of a union has an error for each member."""
    phrases = [expected(details) for details in errors]
    if all(phrases):
        return f"{dotted} is {shown(errors[0]['input'])}, but should be {' or '.join(dict.fromkeys(phrases))}."
    details = errors[phrases.index("")]
    message = str(details["msg"]).rstrip(".")
    for prefix in ("Value error, ", "Assertion failed, "):
        if message.startswith(prefix):
            # The author of the option has written this message.
            return f"{dotted}: {message.removeprefix(prefix)}."
    return f"{dotted} is {shown(details['input'])}, which is invalid: {message}."


def location_in(values: object, details: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys and indices that lead to an invalid value, without pydantic's names for the members of a union.

    Args:
        values: The values that were validated.
        details: An error of pydantic.
    """
    keys, value = [], values
    for part in details["loc"]:
        is_key = isinstance(value, Mapping) and part in value
        is_index = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            keys.append(str(part))
            value = value[part]  # type: ignore[index]
    # The last part of an error of this type is a key that the values lack.
    return (*keys, str(details["loc"][-1])) if details["type"] == "missing" else tuple(keys)
