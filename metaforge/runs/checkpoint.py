"""Checkpoints: safetensors, JSON and a manifest of SHA-256 digests, written beside and renamed, verified at loading.

`step-<step>/` holds `model.safetensors` (the learner's values), `train.safetensors` (the outer optimiser's),
`state.json` (everything else) and `MANIFEST.json` (size and SHA-256 of each). A folder has its final name only when all
of it is on the disk. `LATEST` and `BEST` name one each, for people and for what must not be pruned.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as parsed_tensors
from safetensors.torch import save as tensor_bytes

from metaforge.authoring.protocols import Params
from metaforge.errors import CheckpointError
from metaforge.system.files import fsync, remove, require_space, write_atomically, write_errors

SCHEMA = 2
Which = Literal["latest", "best"] | int
# Schema 1 had no `train.safetensors`: such a checkpoint can be evaluated, and cannot be trained on.
_FILES: Mapping[int, tuple[str, ...]] = {
    1: ("model.safetensors", "state.json"),
    2: ("model.safetensors", "train.safetensors", "state.json"),
}
_MANIFEST = "MANIFEST.json"
# Far above what MetaForge writes; a larger one is not read into memory.
_MOST_JSON = 64 << 20


class Checkpoint(NamedTuple):
    """What was saved after an outer step: the learner's values, the outer optimiser's tensors, and all other facts."""

    step: int
    values: Params
    training: Params
    facts: dict[str, Any]


def save(folder: Path, step: int, values: Params, training: Params, facts: Mapping[str, Any]) -> Path:
    """Write `folder/step-<step>` whole or not at all, point `LATEST` to it, and return its path.

    A valid checkpoint of that step is left as it is. Raises `StorageError` where there is no room, before anything is
    written.
    """
    path = _path(folder, step)
    files = {
        "model.safetensors": to_bytes(values),
        "train.safetensors": to_bytes(training),
        "state.json": json.dumps({"schema": SCHEMA, "step": step, **facts}, indent=1).encode(),
    }
    manifest = {key: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for key, data in files.items()}
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    needed = sum(map(len, files.values()))
    with write_errors(folder, needed):
        if not folder.is_dir():
            folder.mkdir()
            fsync(folder.parent)
        if not (path.exists() and fault(folder, step) is None):
            require_space(folder, needed)
            _write(folder, path, files)
    write_atomically(folder / "LATEST", path.name + "\n")
    return path


def _write(folder: Path, path: Path, files: Mapping[str, bytes]) -> None:
    temporary = folder / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    temporary.mkdir()
    try:
        for key, data in files.items():
            with (temporary / key).open("wb") as file:
                file.write(data)
                fsync(file)
        fsync(temporary)
        if path.exists():
            # Only a damaged one of the same step is in the way, and it is of no use to anybody.
            remove(path)
        os.replace(temporary, path)
        fsync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def mark_best(folder: Path, step: int) -> None:
    """Point `BEST` to the checkpoint of a step, so that it is not pruned."""
    write_atomically(folder / "BEST", _path(folder, step).name + "\n")


def steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, valid or not, the latest first."""
    found = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return sorted((step for name in found if (step := _step_of(name)) is not None), reverse=True)


def size(folder: Path, step: int) -> int:
    """Return how many bytes a checkpoint's files have."""
    return sum(file.lstat().st_size for file in _path(folder, step).glob("*"))


def best(folder: Path) -> int | None:
    """Return the step of the checkpoint that did best in validation, or None."""
    try:
        return _step_of((folder / "BEST").read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all checkpoints but the last `keep` valid ones and the best, and return what was removed."""
    kept = {best(folder)}
    removed = []
    with write_errors(folder):
        for step in steps(folder):
            path = _path(folder, step)
            if step not in kept and len(kept - {best(folder)}) >= keep:
                # Renamed first: a removal cut short leaves a leftover, not half a checkpoint.
                leftover = folder / f".{path.name}.{os.getpid()}.part"
                os.replace(path, leftover)
                remove(leftover)
                removed.append(path)
            elif fault(folder, step) is None:
                kept.add(step)
    return removed


def load_latest(folder: Path) -> tuple[Checkpoint, list[CheckpointError]]:
    """Return the last valid checkpoint, and what is wrong with each later one; raise `CheckpointError` if none is."""
    bad: list[CheckpointError] = []
    for step in steps(folder):
        try:
            return load(_path(folder, step)), bad
        except CheckpointError as error:
            bad.append(error)
    if not bad:
        raise CheckpointError(
            "There is no checkpoint.", where=str(folder), remedy="name the folder of a run that has saved one"
        )
    raise CheckpointError(
        f"None of the {len(bad)} checkpoints can be used. {bad[0].what}", where=bad[0].where, remedy=bad[0].remedy
    )


def chosen(folder: Path, which: Which) -> tuple[Checkpoint, list[CheckpointError]]:
    """Return the last valid checkpoint, the best in validation, or that of a step; `CheckpointError` if it is none.

    With the last valid one, what is wrong with each later one comes too.
    """
    if which == "latest":
        return load_latest(folder)
    step = best(folder) if which == "best" else which
    if step is None:
        raise CheckpointError(
            "No checkpoint is known to be the best.", where=str(folder), remedy="validate with train.validate_every=100"
        )
    if step not in steps(folder):
        known = ", ".join(map(str, steps(folder)))
        raise CheckpointError(
            f"There is no checkpoint of step {step}.",
            where=str(folder),
            remedy=f"there are those of: {known or 'none'}",
        )
    return load(_path(folder, step)), []


def load(path: Path) -> Checkpoint:
    """Return a checkpoint after every file has been compared with the manifest; nothing is half-used."""
    files = dict(_verified(path))
    facts = _json(path / "state.json", files["state.json"])
    step = facts.get("step")
    if type(step) is not int or _path(path.parent, step).name != path.name:
        raise _damaged(path / "state.json", f"it is of step {step!r}")
    tensors = {}
    for name in ("model.safetensors", "train.safetensors"):
        try:
            tensors[name] = from_bytes(files[name]) if name in files else {}
        except (SafetensorError, ValueError) as error:
            raise _damaged(path / name, str(error)) from error
    return Checkpoint(step, tensors["model.safetensors"], tensors["train.safetensors"], facts)


def fault(folder: Path, step: int) -> CheckpointError | None:
    """Return what is wrong with the checkpoint of a step, or None where every file is as its manifest says."""
    try:
        load(_path(folder, step))
    except CheckpointError as error:
        return error
    return None


def _verified(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file of a checkpoint with its content, once size and digest are those of the manifest."""
    if path.is_symlink():
        raise _damaged(path, "it is a link")
    manifest = _json(path / _MANIFEST, _read(path / _MANIFEST, _MOST_JSON))
    names = next((names for names in _FILES.values() if set(names) == set(manifest)), None)
    if names is None:
        raise _damaged(path / _MANIFEST, f"it lists {', '.join(sorted(map(str, manifest)))[:80] or 'no files'}")
    for name in names:
        entry = manifest[name]
        size = entry.get("size") if isinstance(entry, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or (name.endswith(".json") and size > _MOST_JSON):
            raise _damaged(path / _MANIFEST, f"it gives no size for {name}")
        data = _read(path / name, size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise _damaged(path / name, "its size or its SHA-256 is not the one in the manifest")
        found = _json(path / name, data).get("schema") if name == "state.json" else None
        if name == "state.json" and not (isinstance(found, int) and _FILES.get(found) == names):
            raise _damaged(path / name, f"its schema is {found!r}, this MetaForge reads up to {SCHEMA}")
        yield name, data


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def _step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder, None where MetaForge would give it another name."""
    number = name.removeprefix("step-")
    # A name of more digits than a file name can have is read from `BEST` only, and Python would refuse it.
    step = int(number) if number.isdecimal() and len(number) < 256 else -1
    return step if _path(Path(), step).name == name else None


def to_bytes(tensors: Params) -> bytes:
    """Return tensors in the safetensors format."""
    return tensor_bytes({key: value.detach().cpu().contiguous() for key, value in tensors.items()})


def from_bytes(data: bytes) -> Params:
    """Return the tensors of bytes in the safetensors format."""
    return parsed_tensors(data)


def _read(path: Path, most: int) -> bytes:
    """Return a file's content; one of more than `most` bytes is not read."""
    try:
        if path.is_symlink() or not path.is_file():
            raise _damaged(path, "it is missing or no plain file")
        # What the system says of the size, for a manifest may say anything: no more memory is asked for.
        there = path.stat().st_size
        if there > most:
            raise _damaged(path, "it is larger than it should be")
        with path.open("rb") as file:
            return file.read(there)
    except (OSError, MemoryError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or "it cannot be read") from error


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data, object_pairs_hook=_once)
    except KeyError as error:
        raise _damaged(path, f"it says {error} twice") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise `KeyError` for a name given twice, which two readers could read in two ways."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise KeyError(name)
        found[name] = value
    return found


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint file {path.name} cannot be used: {why}.",
        where=str(path),
        remedy="restore the run folder from a copy, or train again from its config.toml",
    )
