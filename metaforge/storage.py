"""Writing so that nothing is lost: whole or not at all, on the disk before it counts, and refusals as sentences."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

from metaforge.errors import StorageError

# What a file system itself may need beside the bytes of the files.
_SLACK = 1 << 16


@contextmanager
def storage(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the system's refusal to write below `path` into one sentence, which also tells the bytes `needed`."""
    try:
        yield
    except OSError as error:
        wanted = "" if needed is None else f" {needed:,} bytes are needed."
        raise StorageError(
            f"Cannot write {error.filename or path}: {error.strerror or error}.{wanted}{_room(path)}",
            where=str(path),
            remedy="free space and check the permissions, or choose another folder with --out",
        ) from error


def require_space(folder: Path, needed: int) -> None:
    """Raise `StorageError` unless `needed` bytes fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise StorageError(
            f"There is no room for {needed:,} bytes: {free:,} are free.",
            where=str(folder),
            remedy="free space, or choose another folder with --out; what was saved before is untouched",
        )


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file beside its name and rename it: a reader, or a reboot, finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    content = data.encode() if isinstance(data, str) else data
    with storage(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                synced(file)
            os.replace(temporary, path)
            synced(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write an object as JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def synced(what: BufferedWriter | Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if isinstance(what, Path):
        if os.name != "posix":
            return  # Elsewhere folders cannot be opened, and renames are journalled.
        descriptor = os.open(what, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    what.flush()
    os.fsync(what.fileno())


def _room(path: Path) -> str:
    """Return how much room there is, where that can be told."""
    there = next((one for one in (path, *path.parents) if one.is_dir()), None)
    try:
        return f" {shutil.disk_usage(there).free:,} bytes are free." if there is not None else ""
    except OSError:
        return ""
