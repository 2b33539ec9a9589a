"""Random mutations of the files of a run folder: of their bytes, and of the values in them."""

from __future__ import annotations

import copy
import json
import random
import struct
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

# What no reader expects; CANARY becomes the path of a file that must not change.
_TEXTS = (
    "",
    "x/../../../PWNED",
    "../precious/file.txt",
    "CANARY",
    "\x1b[2J\x07",
    "a\n# b\n<script>",
    "x" * 5000,
    "$\\frac$",
    "NaN",
    "\u202e",
    "é\ud800",
)
_NUMBERS = (-1, 0, 1, 2, 3.5, -0.0, 7, 2**31, 2**63 - 1, 2**63, 10**21, 1e-300, 1e300, 1e308)
_OTHERS = (True, False, [], {}, [[]], [1, "x", None], {"a": {"b": [1]}}, "1", "os.system")


def mutated(path: Path, rng: random.Random, *, canary: str, others: Sequence[Path]) -> str:
    """Change a file, and return in words how.

    Args:
        path: The file; its suffix decides which mutations there are.
        rng: Chooses the mutation.
        canary: A path outside the run folder, which is among the new values.
        others: Files whose content may take the place of this one's.
    """
    if rng.random() < 0.3:
        return _change_bytes(path, rng, others)
    change: dict[str, Callable[[Path, random.Random, str], str]] = {
        ".json": _change_json,
        ".jsonl": _change_lines,
        ".toml": _change_toml,
        ".safetensors": _change_header,
    }
    return change[path.suffix](path, rng, canary)


def _change_bytes(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data) or 1)
    how = rng.choice(("bit", "bits", "truncated", "empty", "zeros", "inserted", "doubled", "swapped"))
    if how in ("bit", "bits") and data:
        for place in [position, *(rng.randrange(len(data)) for _ in range(0 if how == "bit" else 20))]:
            data[place] ^= 1 << rng.randrange(8)
    elif how == "truncated":
        del data[position:]
    elif how == "empty":
        data.clear()
    elif how == "zeros":
        data[position : position + 40] = bytes(len(data[position : position + 40]))
    elif how == "inserted":
        data[position:position] = rng.choice((b"\0", b"\xff\xfe", b"[" * 20_000, b"9" * 5000, b"\x1b[2J", b"}", b'"'))
    elif how == "doubled":
        data = data * 2
    elif how == "swapped":
        other = rng.choice(others)
        data, how = bytearray(other.read_bytes()), f"swapped with {other.name}"
    path.write_bytes(data)
    return f"{how} at byte {position}"


def _change_json(path: Path, rng: random.Random, canary: str) -> str:
    text, how = _changed_text(path.read_text("utf-8"), rng, canary)
    path.write_text(text, "utf-8")
    return how


def _change_lines(path: Path, rng: random.Random, canary: str) -> str:
    """Change one line of a file, or the order or the number of the lines."""
    lines = path.read_text("utf-8").splitlines() or ["{}"]
    number = rng.randrange(len(lines))
    how = rng.choice(("value", "value", "value", "line doubled", "line removed", "lines reversed"))
    if how == "value":
        lines[number], how = _changed_text(lines[number], rng, canary)
    elif how == "line doubled":
        lines.insert(number, lines[number])
    elif how == "line removed":
        del lines[number]
    else:
        lines.reverse()
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return f"{how} in line {number + 1}"


def _change_toml(path: Path, rng: random.Random, canary: str) -> str:
    values = tomllib.loads(path.read_text("utf-8"))
    how = _change_value(values, rng, canary)
    try:
        data = tomli_w.dumps(values).encode()
    except (TypeError, ValueError):
        # TOML has neither null nor surrogates.
        data, how = b"", "no settings"
    path.write_bytes(data)
    return how


def _change_header(path: Path, rng: random.Random, canary: str) -> str:
    """Change the header of a safetensors file, which is JSON, and mostly correct the length before it."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    text, how = _changed_text(data[8:end].decode(), rng, canary)
    header = text.encode("utf-8", "surrogatepass")
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**64 - 1, len(header) + 1))
    path.write_bytes(struct.pack("<Q", length) + header + data[end:])
    return f"header: {how}"


def _changed_text(text: str, rng: random.Random, canary: str) -> tuple[str, str]:
    """Return a JSON text with one change, and how it was changed."""
    value = json.loads(text)
    if isinstance(value, dict) and value and rng.random() < 0.1:
        name = rng.choice([*value])
        inserted = json.dumps({name: _new_value(rng, canary)})[1:-1]
        return text.replace("{", "{" + inserted + ", ", 1), f"{name} twice"
    if rng.random() < 0.05:
        wrapped = rng.choice(([value], [], "x", 1, None, {"x": value}))
        return json.dumps(wrapped), f"a {type(wrapped).__name__} in its place"
    how = _change_value(value, rng, canary)
    # NaN and Infinity are written as Python's own JSON has them.
    return json.dumps(value), how


def _change_value(value: Any, rng: random.Random, canary: str) -> str:
    """Change one value inside nested dictionaries and lists, chosen level by level; return how."""
    parent, key, path = value, None, []
    while isinstance(parent, (dict, list)) and parent:
        key = rng.choice([*parent]) if isinstance(parent, dict) else rng.randrange(len(parent))
        path.append(str(key)[:40])
        inner = parent[key]
        if not (isinstance(inner, (dict, list)) and inner) or rng.random() < 0.25:
            break
        parent = inner
    if key is None:
        return "nothing"
    how = rng.choice(("replaced", "replaced", "replaced", "removed", "renamed", "copied", "deep"))
    if how == "removed":
        del parent[key]
    elif how == "renamed" and isinstance(parent, dict):
        parent[rng.choice(_TEXTS).replace("CANARY", canary)] = parent.pop(key)
    elif how == "copied":
        source = rng.choice([*parent]) if isinstance(parent, dict) else rng.randrange(len(parent))
        parent[key] = copy.deepcopy(parent[source])
    elif how == "deep":
        inner = parent[key]
        for _ in range(rng.choice((1, 3, 40))):
            inner = [inner]
        parent[key] = inner
    else:
        parent[key] = _new_value(rng, canary)
        how = f"replaced by {parent[key]!r:.60}"
    return f"{'.'.join(path)} {how}"


def _new_value(rng: random.Random, canary: str) -> Any:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(_TEXTS).replace("CANARY", canary)
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice((float("nan"), float("inf"), -float("inf"), None, 10**400))
    return copy.deepcopy(rng.choice(_OTHERS))
