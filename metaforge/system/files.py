"""Writing so that nothing is lost: whole or not at all, on the disk before it counts, and refusals as sentences."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

from metaforge.errors import StorageError

# What a file system itself may need beside the bytes of the files.
_SLACK = 1 << 16
# A block, which a new entry of a folder may take.
_ENTRY = 4096


@contextmanager
def write_errors(path: Path, needed: int = _ENTRY) -> Iterator[None]:
    """Turn the system's refusal to write below `path` into one sentence, which also tells the bytes `needed`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Cannot write {error.filename or path}: {error.strerror or error}."
            f" {needed:,} bytes are needed.{free_space(path)}",
            where=str(path),
            remedy="free space and check the permissions, or choose another folder with --out",
        ) from error


def require_space(folder: Path, needed: int) -> None:
    """Raise `StorageError` unless `needed` bytes, and what the file system adds, fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise StorageError(
            f"There is no room: {needed + _SLACK:,} bytes are needed. {free:,} bytes are free.",
            where=str(folder),
            remedy="free space, or choose another folder with --out; what was saved before is untouched",
        )


def require_writable(folder: Path) -> None:
    """Raise `StorageError` unless a folder takes a file; none is left there."""
    with write_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


def make_folder(path: Path) -> bool:
    """Make a folder and those above it, on the disk when this returns; return whether it is new."""
    with write_errors(path):
        missing = [one for one in (path, *path.parents) if not one.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        for folder in missing:
            fsync(folder.parent)
    return True


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever else has that name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left anywhere below a folder, which nobody else may be writing."""
    with write_errors(folder):
        for leftover in list(folder.rglob(".*.part")):
            remove(leftover)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file beside its name and rename it: a reader, or a reboot, finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    content = data.encode() if isinstance(data, str) else data
    with write_errors(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                fsync(file)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write an object as JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def fsync(what: BufferedWriter | Path) -> None:
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


def free_space(path: Path) -> str:
    """Return how much room there is, where that can be told."""
    there = next((one for one in (path, *path.parents) if one.is_dir()), None)
    try:
        return f" {shutil.disk_usage(there).free:,} bytes are free." if there is not None else ""
    except OSError:
        return ""
