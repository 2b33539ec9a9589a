"""Reading untrusted files: regular files up to a size, and JSON with bounds on its nesting and its numbers.

A run folder may come from somebody else, and any file in it may be made to harm: a pipe that never ends, JSON nested so
deep that Python's recursion limit is reached, or an integer of a million digits.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

UNREADABLE = (OSError, ValueError, RecursionError)
"""The errors that the functions of this module raise for an invalid file."""

_MAX_BYTES, _MAX_DEPTH = 256 * 2**20, 30
# Enough digits for a sign and a 64-bit integer, and a largest number that leaves room for arithmetic with it.
_MAX_DIGITS, _MAX_NUMBER = 20, 1e300


def read_regular_file(path: Path, limit: int = _MAX_BYTES) -> bytes:
    """Return the bytes of a file.

    Raises `OSError` if it is missing, unreadable or not a regular file, `ValueError` if it has more than `limit` bytes.
    """
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def require_regular(path: Path) -> None:
    """Raise `OSError` if a file is missing or not a regular file.

    To be called before a file is opened: opening a named pipe blocks until another process writes into it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises `ValueError` or `RecursionError` if it is not JSON, nests more than 30 levels deep, or has an integer of more
    than 20 characters or a number beyond 1e300.
    """
    value = _DECODER.decode(text if isinstance(text, str) else text.decode(json.detect_encoding(text)))
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests more than {_MAX_DEPTH} levels deep")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise one of `UNREADABLE` if the file is invalid or holds another value."""
    value = parse_json(read_regular_file(path))
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    return value


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    # Written so that NaN is refused too: every comparison with it is false.
    if not abs(value) < _MAX_NUMBER:
        raise ValueError(f"it has a number that is not finite or is beyond {_MAX_NUMBER:g} ({text[:30]})")
    return value


# Made once: json.loads makes a decoder for each call, which takes longer than to parse a short line.
_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_number)
