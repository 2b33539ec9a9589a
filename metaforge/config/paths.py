"""Dotted paths of settings, such as `train.lr`; a key that contains a dot is in quotes, as in TOML."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A part of a path: in single or double quotes, or without quotes up to the next dot.
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^.\"'][^.]*)")


def quoted(key: str) -> str:
    """Return a key as it stands in a path: in quotes if it contains a dot."""
    return f'"{key}"' if "." in key else key


def joined(keys: Iterable[str]) -> str:
    """Return the path of nested keys."""
    return ".".join(quoted(key) for key in keys)


def parts(path: str) -> tuple[str, ...]:
    """Return the keys of a path; an empty tuple for a text that is not a path.

    >>> parts('train.groups."adapters.*".lr')
    ('train', 'groups', 'adapters.*', 'lr')
    """
    keys: list[str] = []
    end = 0
    while match := _PART.match(path, end):
        keys.append(next(group for group in match.groups() if group is not None))
        end = match.end()
        if end == len(path):
            return tuple(keys) if all(keys) else ()
        if path[end] != ".":
            break
        end += 1
    return ()
