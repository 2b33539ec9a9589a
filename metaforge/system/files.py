"""Writing files atomically and durably, and turning the system's write errors into `StorageError`.

Atomic: a reader sees the old content or the new one, never a part. Durable: written content survives a power failure.
"""

from __future__ import annotations

import errno
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

# The bytes that a file system may need for itself, beside those of the files.
_OVERHEAD = 1 << 16
# The size of a block: a new entry in a folder may take one.
_BLOCK = 4096
# The errors that mean that there is too little space: on the disk, in a quota, or up to the largest size of a file.
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def write_errors(path: Path, needed: int = _BLOCK) -> Iterator[None]:
    """Raise `StorageError` in place of an `OSError` from the block, which writes at or below `path`.

    If there is too little space, the message names the number of bytes `needed` and the free space.
    """
    try:
        yield
    except OSError as error:
        remedy = "check the path and its permissions, or write to another folder (copy a run folder of another user)"
        raise StorageError(
            f"Cannot write {error.filename or path}: {error.strerror or error}.{space_text(error, path, needed)}",
            where=str(path),
            remedy="free space, or choose another folder with --out" if is_no_space(error) else remedy,
        ) from error


def require_space(folder: Path, needed: int) -> None:
    """Raise `StorageError` unless the disk of a folder has `needed` free bytes and 64 KiB for the file system."""
    free = shutil.disk_usage(folder).free
    if free < needed + _OVERHEAD:
        raise StorageError(
            f"The disk is full: {needed + _OVERHEAD:,} bytes are needed. {free:,} bytes are free.",
            where=str(folder),
            remedy="free space, or choose another folder with --out; earlier checkpoints are unchanged",
        )


def require_writable(folder: Path) -> None:
    """Raise `StorageError` unless a file can be created in a folder; the file is removed again."""
    with write_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


def make_folder(path: Path) -> bool:
    """Create a folder and its missing parents durably; return whether it is new."""
    with write_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        for folder in missing:
            fsync(folder.parent)
    return True


def remove(path: Path) -> None:
    """Remove a folder with its content, a file, or a symbolic link; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of interrupted writes below a folder; no other process may be writing there."""
    with write_errors(folder):
        for leftover in list(folder.rglob(".*.part")):
            remove(leftover)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a temporary file beside `path` and rename it: readers see the old content or the new, after a crash too.

    Raises `StorageError` where the system refuses; the old content then stays.
    """
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
    """Write an object as JSON, atomically; raise `ValueError` for NaN and infinity, which JSON does not have."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def fsync(target: BufferedWriter | Path) -> None:
    """Block until the content of an open file, or the entries of a folder, are stored on the disk."""
    if isinstance(target, Path):
        if os.name != "posix":
            return  # Other systems cannot open a folder, and they journal renames.
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    target.flush()
    os.fsync(target.fileno())


def is_no_space(error: OSError) -> bool:
    """Return whether a write failed because there is too little space."""
    return error.errno in _NO_SPACE


def space_text(error: OSError, path: Path, needed: int) -> str:
    """Return sentences on the needed and the free bytes if a write failed for lack of space, else an empty string."""
    return f" {needed:,} bytes are needed.{free_space(path)}" if is_no_space(error) else ""


def free_space(path: Path) -> str:
    """Return a sentence on the free space of the disk of `path`, or an empty string where it is not known."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    try:
        return f" {shutil.disk_usage(folder).free:,} bytes are free." if folder is not None else ""
    except OSError:
        return ""
