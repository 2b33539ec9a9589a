"""Checkpoints: safetensors and JSON with a manifest of SHA-256 digests, written atomically and verified on loading.

`step-<step>/` contains `model.safetensors` (the values of the learner), `train.safetensors` (the tensors of the outer
optimiser), `state.json` (everything else) and `MANIFEST.json` (size and SHA-256 of each file). A folder gets its final
name only when all of its files are on disk. The files `LATEST` and `BEST` each name one checkpoint; the best one is
never pruned.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError

from metaforge.authoring.protocols import Params
from metaforge.errors import CheckpointError
from metaforge.runs.checkpoint_files import (
    MANIFEST,
    SCHEMA,
    damaged,
    from_bytes,
    parse_object,
    require_loadable_json,
    to_bytes,
    verified_files,
)
from metaforge.system.files import fsync, remove, require_space, write_atomically, write_errors

Which = Literal["latest", "best"] | int


class Checkpoint(NamedTuple):
    """What was saved after an outer step.

    Attributes:
        step: The outer step.
        values: The values of the learner.
        training: The tensors of the outer optimiser.
        facts: The content of `state.json`.
    """

    step: int
    values: Params
    training: Params
    facts: dict[str, Any]


def save(folder: Path, step: int, values: Params, training: Params, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint `folder/step-<step>` atomically and point `LATEST` to it.

    A valid checkpoint of that step is kept as it is.

    Args:
        folder: The folder of all checkpoints of the run.
        step: The outer step.
        values: The values of the learner.
        training: The tensors of the outer optimiser.
        facts: Everything else, as values that JSON can represent.

    Returns:
        The path of the checkpoint.

    Raises:
        StorageError: The disk has too little space, which is checked before anything is written, or is not writable.
        CheckpointError: `load` would refuse the `state.json` with these facts; nothing is written then.
    """
    path = _path(folder, step)
    files = {
        "model.safetensors": to_bytes(values),
        "train.safetensors": to_bytes(training),
        "state.json": json.dumps({"schema": SCHEMA, "step": step, **facts}, indent=1).encode(),
    }
    require_loadable_json(path / "state.json", files["state.json"])
    manifest = {key: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for key, data in files.items()}
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
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
            # Only a damaged checkpoint of the same step can be here, and it is useless.
            remove(path)
        os.replace(temporary, path)
        fsync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def mark_best(folder: Path, step: int) -> None:
    """Point `BEST` to the checkpoint of a step, which protects it from pruning."""
    write_atomically(folder / "BEST", _path(folder, step).name + "\n")


def steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, valid or not, the latest first.

    Raises `CheckpointError` if the folder cannot be read: a run must not restart because its checkpoints are not seen.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"The folder of the checkpoints cannot be read: {error.strerror}.",
            where=str(folder),
            remedy="correct its permissions, or use a copy of the run folder",
        ) from error
    return sorted((step for name in names if (step := _step_of(name)) is not None), reverse=True)


def size(folder: Path, step: int) -> int:
    """Return the size of a checkpoint in bytes."""
    return sum(file.lstat().st_size for file in _path(folder, step).glob("*"))


def manifest_digest(folder: Path, step: int) -> str:
    """Return the SHA-256 digest of the manifest of a checkpoint, and so of everything in it, once it was loaded."""
    return hashlib.sha256((_path(folder, step) / MANIFEST).read_bytes()).hexdigest()


def best(folder: Path) -> int | None:
    """Return the step of the checkpoint with the best validation score, None if there is none."""
    try:
        return _step_of((folder / "BEST").read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all checkpoints before the last `keep` valid ones, except the best; return the removed paths.

    The best one is kept in addition to these. Damaged checkpoints that are not older are kept too.
    """
    kept = {best(folder)}
    removed = []
    with write_errors(folder):
        for step in steps(folder):
            path = _path(folder, step)
            if step not in kept and len(kept - {best(folder)}) >= keep:
                # Renamed first, so that an interrupted removal never leaves half a checkpoint.
                leftover = folder / f".{path.name}.{os.getpid()}.part"
                os.replace(path, leftover)
                remove(leftover)
                removed.append(path)
            elif fault(folder, step) is None:
                kept.add(step)
    return removed


def discard(folder: Path) -> None:
    """Remove the folder of all checkpoints, if there is one."""
    with write_errors(folder):
        remove(folder)


def load_latest(folder: Path) -> tuple[Checkpoint, list[CheckpointError]]:
    """Return the last valid checkpoint and one error for each later, damaged one.

    Raises `CheckpointError` if no checkpoint is valid.
    """
    bad: list[CheckpointError] = []
    for step in steps(folder):
        try:
            return load(_path(folder, step)), bad
        except CheckpointError as error:
            bad.append(error)
    if not bad:
        raise CheckpointError(
            "There is no checkpoint.", where=str(folder), remedy="give the folder of a run that has saved one"
        )
    raise CheckpointError(
        f"None of the {len(bad)} checkpoints can be used. {bad[0].what}", where=bad[0].where, remedy=bad[0].remedy
    )


def chosen(folder: Path, which: Which) -> tuple[Checkpoint, list[CheckpointError]]:
    """Return the checkpoint that is asked for and, for `latest`, one error for each later, damaged one.

    Args:
        folder: The folder of all checkpoints of the run.
        which: `"latest"` (the last valid one), `"best"` (in validation), or an outer step.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    if which == "latest":
        return load_latest(folder)
    step = best(folder) if which == "best" else which
    if step is None:
        raise CheckpointError(
            "There is no best checkpoint: the run was never validated.",
            where=str(folder),
            remedy="validate with train.validate_every=100",
        )
    if step not in steps(folder):
        known = ", ".join(map(str, steps(folder)))
        raise CheckpointError(
            f"There is no checkpoint of step {step}.",
            where=str(folder),
            remedy=f"there are checkpoints of the steps: {known or 'none'}",
        )
    return load(_path(folder, step)), []


def load(path: Path) -> Checkpoint:
    """Return a checkpoint after comparing every file with the manifest; raise `CheckpointError` if one differs."""
    files = dict(verified_files(path))
    facts = parse_object(path / "state.json", files["state.json"])
    step = facts.get("step")
    if type(step) is not int or _path(path.parent, step).name != path.name:
        raise damaged(path / "state.json", f"it belongs to step {step!r}")
    tensors = {}
    for name in ("model.safetensors", "train.safetensors"):
        try:
            tensors[name] = from_bytes(files[name]) if name in files else {}
        except (SafetensorError, ValueError) as error:
            raise damaged(path / name, str(error)) from error
    return Checkpoint(step, tensors["model.safetensors"], tensors["train.safetensors"], facts)


def fault(folder: Path, step: int) -> CheckpointError | None:
    """Return the error that loading the checkpoint of a step raises, or None if it is valid."""
    try:
        load(_path(folder, step))
    except CheckpointError as error:
        return error
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def _step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint folder, None if the name is not of that form."""
    number = name.removeprefix("step-")
    # `BEST` could contain more digits than a file name, and more than Python converts.
    step = int(number) if number.isdecimal() and len(number) < 256 else -1
    return step if _path(Path(), step).name == name else None
