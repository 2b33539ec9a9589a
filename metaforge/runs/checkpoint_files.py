"""The files of a checkpoint: each is verified against the manifest before it is used; tensors are safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from metaforge.authoring.protocols import Params
from metaforge.errors import CheckpointError

SCHEMA = 2
# Schema 1 had no `train.safetensors`: such a checkpoint can be evaluated, but training cannot be resumed from it.
FILES: Mapping[int, tuple[str, ...]] = {
    1: ("model.safetensors", "state.json"),
    2: ("model.safetensors", "train.safetensors", "state.json"),
}
MANIFEST = "MANIFEST.json"
# Far above what MetaForge writes; a larger file is not read into memory.
MOST_JSON = 64 << 20


def verified_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a checkpoint after comparing size and digest with the manifest."""
    if path.is_symlink():
        raise damaged(path, "it is a symbolic link")
    manifest = parse_object(path / MANIFEST, _read(path / MANIFEST, MOST_JSON))
    names = next((names for names in FILES.values() if set(names) == set(manifest)), None)
    if names is None:
        raise damaged(path / MANIFEST, f"it lists {', '.join(sorted(map(str, manifest)))[:80] or 'no files'}")
    for name in names:
        entry = manifest[name]
        size = entry.get("size") if isinstance(entry, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or (name.endswith(".json") and size > MOST_JSON):
            raise damaged(path / MANIFEST, f"it gives no size for {name}")
        data = _read(path / name, size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise damaged(path / name, "its size or SHA-256 differs from the manifest")
        found = parse_object(path / name, data).get("schema") if name == "state.json" else None
        if name == "state.json" and not (isinstance(found, int) and FILES.get(found) == names):
            raise damaged(path / name, f"its schema is {found!r}, this MetaForge reads up to {SCHEMA}")
        yield name, data


def to_bytes(tensors: Params) -> bytes:
    """Return tensors in the safetensors format."""
    return save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})


def from_bytes(data: bytes) -> Params:
    """Return the tensors in bytes of the safetensors format."""
    return load_tensors(data)


def _read(path: Path, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes."""
    try:
        if path.is_symlink() or not path.is_file():
            raise damaged(path, "it is missing or not a regular file")
        # The size on disk limits the memory that is allocated: a manifest could claim any size.
        size = path.stat().st_size
        if size > most:
            raise damaged(path, "it is larger than it should be")
        with path.open("rb") as file:
            return file.read(size)
    except (OSError, MemoryError) as error:
        raise damaged(path, getattr(error, "strerror", None) or "it cannot be read") from error


def require_loadable_json(path: Path, data: bytes) -> None:
    """Raise `CheckpointError` for the content of a JSON file that reading a checkpoint would refuse."""
    problem = ""
    if len(data) > MOST_JSON:
        problem = f"it would have {len(data):,} bytes, and no more than {MOST_JSON:,} are read"
    else:
        try:
            parse_object(path, data)
        except CheckpointError as error:
            problem = error.what.rstrip(".")
    if problem:
        raise CheckpointError(
            f"The checkpoint file {path.name} is not written, because it could not be loaded again: {problem}.",
            where=str(path),
            remedy="earlier checkpoints are unchanged; let hooks keep a smaller state, and learners return fewer"
            " metrics",
        )


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data, object_pairs_hook=_once)
    except KeyError as error:
        raise damaged(path, f"it contains the key {error} twice") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(content, dict):
        raise damaged(path, "it is not a JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise `KeyError` for a duplicate key, because parsers differ in which value they keep."""
    parsed: dict[str, Any] = {}
    for name, value in pairs:
        if name in parsed:
            raise KeyError(name)
        parsed[name] = value
    return parsed


def damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint file {path.name} cannot be used: {why}.",
        where=str(path),
        remedy="restore the run folder from a copy, or train again from its config.toml",
    )
