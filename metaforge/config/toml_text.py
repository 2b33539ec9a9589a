"""Settings as TOML text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested values by dotted path; an empty table is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_toml_values(value: Any) -> Any:
    """Return values as TOML can hold them: it has no null, so the word `none` stands for it."""
    if isinstance(value, Mapping):
        return {key: to_toml_values(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_toml_values(one) for one in value]
    return "none" if value is None else value


def annotated_toml(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return a run file of one value per line, each with its origin as a comment."""
    rows = []
    for path, value in flatten(values):
        key = ".".join(part if _BARE.fullmatch(part) else json.dumps(part) for part in path.split("."))
        rows.append((f"{key} = {'{}' if isinstance(value, Mapping) else json.dumps(value)}", origins[path]))
    width = max(len(text) for text, _ in rows)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)
