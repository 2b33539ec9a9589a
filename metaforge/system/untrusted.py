"""Files of a stranger's run folder, read without trust: plain files up to a size, JSON that nests little."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

UNREADABLE = (OSError, ValueError, RecursionError)
"""What reading such a file, and parsing it, raises."""

_BYTES, _DEPTH = 256 * 2**20, 30
# More digits than any integer of 64 bits, and less than the largest float by a margin to reckon with.
_DIGITS, _LARGEST = 20, 1e300


def read_regular_file(path: Path, limit: int = _BYTES) -> bytes:
    """Return a file's bytes; one of `UNREADABLE` where it is no plain file or has more than `limit` of them."""
    # Opening a pipe would wait for somebody to write into it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no plain file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text means; one of `UNREADABLE` where it is none, nests deep, or has a number beyond 1e300."""
    value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
    level, depth = [value], 0
    while level := [one for outer in level for one in _inside(outer)]:
        if (depth := depth + 1) > _DEPTH:
            raise ValueError(f"it nests more than {_DEPTH} levels deep")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; one of `UNREADABLE` where there is none."""
    found = parse_json(read_regular_file(path))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < _LARGEST:
        raise ValueError(f"it has a number that is not finite, or almost so ({text[:30]})")
    return value
