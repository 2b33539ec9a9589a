"""Checkpoints: safetensors, JSON and a manifest of SHA-256 digests, written beside and renamed, verified at loading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_bytes

from metaforge.errors import CheckpointError
from metaforge.protocols import Params
from metaforge.runs import storage, write_atomically

SCHEMA = 1
_MANIFEST = "MANIFEST.json"


class Checkpoint(NamedTuple):
    """What was saved: the learner's values and facts about them."""

    values: Params
    facts: dict[str, Any]


def save(folder: Path, step: int, values: Params, facts: Mapping[str, Any]) -> Path:
    """Write `folder/step-<step>` whole or not at all, point `LATEST` to it, and return its path."""
    name = f"step-{step:07d}"
    path, temporary = folder / name, folder / f".{name}.{os.getpid()}.part"
    files = {
        "model.safetensors": tensor_bytes({key: value.detach().cpu().contiguous() for key, value in values.items()}),
        "state.json": json.dumps({"schema": SCHEMA, "step": step, **facts}, indent=1).encode(),
    }
    manifest = {key: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for key, data in files.items()}
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    with storage(folder):
        folder.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for key, data in files.items():
            with (temporary / key).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        write_atomically(folder / "LATEST", name + "\n")
    return path


def load_latest(folder: Path) -> Checkpoint:
    """Return the checkpoint that `LATEST` names; raise `CheckpointError` where there is none or it is damaged."""
    try:
        name = (folder / "LATEST").read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "There is no checkpoint.", where=str(folder), remedy="name the folder of a run that has saved one"
        ) from error
    if not name.startswith("step-") or not name.removeprefix("step-").isdecimal():
        raise _damaged(folder / "LATEST", f"it names {name[:40]!r}, which is no checkpoint")
    return load(folder / name)


def load(path: Path) -> Checkpoint:
    """Return a checkpoint after every file has been compared with the manifest; nothing is half-used."""
    manifest = _json(path / _MANIFEST, _read(path / _MANIFEST))
    files = {}
    for name in ("model.safetensors", "state.json"):
        data, entry = _read(path / name), manifest.get(name)
        if not isinstance(entry, dict) or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise _damaged(path / name, "its SHA-256 is not the one in the manifest")
        files[name] = data
    facts = _json(path / "state.json", files["state.json"])
    if facts.get("schema") != SCHEMA:
        raise _damaged(path / "state.json", f"its schema is {facts.get('schema')!r}, this MetaForge reads {SCHEMA}")
    try:
        return Checkpoint(parse_tensors(files["model.safetensors"]), facts)
    except SafetensorError as error:
        raise _damaged(path / "model.safetensors", str(error)) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from error


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint file {path.name} cannot be used: {why}.",
        where=str(path),
        remedy="restore the run folder from a copy, or train again from its config.toml",
    )
