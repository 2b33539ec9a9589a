"""Writing settings as TOML text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from metaforge.config import paths

# A key that TOML needs no quotes for.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf of nested values; an empty table is a leaf."""
    for key, value in values.items():
        path = f"{prefix}{paths.quoted(key)}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def to_toml_values(value: Any) -> Any:
    """Return nested values with the word `none` in place of None: TOML has no null."""
    if isinstance(value, Mapping):
        return {key: to_toml_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_toml_values(inner) for inner in value]
    return "none" if value is None else value


def annotated_toml(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return a run file with one value per line and the origin of each value as a comment, in aligned columns."""
    rows = []
    for path, value in flatten(values):
        key = ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in paths.parts(path))
        rows.append((f"{key} = {'{}' if isinstance(value, Mapping) else json.dumps(value)}", origins[path]))
    width = max(len(text) for text, _ in rows)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)
