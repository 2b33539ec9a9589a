"""A folder of files, read alike whether it is unpacked or still a zip archive."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from metaforge.data.archives import open_zip, read_member
from metaforge.data.downloads import Opener, Progress, download, open_https
from metaforge.data.episodes import Indices, Pixels
from metaforge.data.images import MAX_BYTES, Resample, decode_image, read_file
from metaforge.errors import DataError


class Tree(Protocol):
    """Files by name, `folder/…/file` with the top folder first; `path` is the archive or folder on disk."""

    path: Path

    @property
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; `DataError`, naming it, if it is damaged or missing."""
        ...

    def stamp(self) -> str:
        """Return a text that changes when the files do (from sizes and times, not from contents)."""
        ...


class ZipTree:
    """The files of a zip archive, whose listing is validated before the first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return open_zip(self.path)

    @cached_property
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(info.filename for info in self._archive.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """Return the bytes of a member, its checksum verified."""
        return read_member(self._archive, name, max_bytes=MAX_BYTES)

    def stamp(self) -> str:
        """Return the archive's size and time of change, without opening it."""
        facts = self.path.stat()
        return f"{facts.st_size}/{facts.st_mtime_ns}"


class FolderTree:
    """The files below a folder; links to folders are not followed, and links of files stay within it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        found: list[str] = []

        def stop(error: OSError) -> None:
            raise _unreadable(Path(error.filename or self.path), error) from error

        for folder, _, files in os.walk(self.path, onerror=stop):
            for file in files:
                self._refuse_outside(os.path.join(folder, file))
            inner = Path(folder).relative_to(self.path.parent).as_posix()
            found.extend(f"{inner}/{file}" for file in files)
        return sorted(found)

    def _refuse_outside(self, file: str) -> None:
        if os.path.islink(file) and not os.path.realpath(file).startswith(os.path.realpath(self.path) + os.sep):
            raise DataError(
                "the link leads out of the folder of the data set",
                where=file,
                remedy="put the file itself there, or take the link out",
            )

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return read_file(self.path.parent / name)

    def stamp(self) -> str:
        """Return a digest of the names, sizes and times of change of all files."""
        digest = hashlib.sha256()
        base = str(self.path.parent)
        for name in self.names:
            try:
                facts = os.stat(f"{base}/{name}")
            except OSError as error:
                raise _unreadable(self.path.parent / name, error) from error
            digest.update(os.fsencode(f"{name}/{facts.st_size}/{facts.st_mtime_ns}\n"))
        return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the file or folder cannot be read: {error.strerror or error}",
        where=str(path),
        remedy="correct its permissions, take it out if it is a broken link, or put the data set in place again",
    )


def open_tree(folder: Path, name: str) -> Tree | None:
    """Return the files of `folder/name.zip` or else of `folder/name/`, or None if there is neither."""
    archive = folder / f"{name}.zip"
    # Of os.path: those of Path raise where a name is too long.
    if os.path.isfile(archive):
        return ZipTree(archive)
    return FolderTree(folder / name) if os.path.isdir(folder / name) else None


def content_digest(tree: Tree, suffix: str = ".png") -> str:
    """Return the SHA-256 over the sorted names and the decoded grey pixels of a tree's images.

    It is the same however the images were packed, compressed or dated.
    """
    digest = hashlib.sha256()
    for name in tree.names:
        if name.lower().endswith(suffix):
            pixels = decode_image(tree.read(name), where=f"{tree.path}: {name!r}")
            digest.update(os.fsencode(f"{name}\0{pixels.shape}\0"))
            digest.update(pixels.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class TreeImages:
    """Grey images of trees as an `ImageSource`, decoded when asked for; `places[row][image]` says where each is.

    Every row has the same number of images; `invert` makes dark ink on white paper light ink on black.
    """

    places: Sequence[Sequence[tuple[Tree, str]]]
    size: int
    resample: Resample = "box"
    invert: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(rows, per_class, 1, size, size)`."""
        return len(self.places), len(self.places[0]), 1, self.size, self.size

    def take(self, classes: Indices, images: Indices) -> Pixels:
        """Return images `[n, 1, size, size]` for numbers of row and image `[n]`; `DataError` if one is damaged."""
        taken = np.empty((len(classes), *self.shape[2:]), dtype=np.uint8)
        for position, (row, image) in enumerate(zip(classes.tolist(), images.tolist(), strict=True)):
            tree, name = self.places[row][image]
            taken[position] = decode_image(
                tree.read(name),
                where=f"{tree.path}: {name!r}",
                size=self.size,
                resample=self.resample,
                # Reading a zip member has verified its checksum; nobody has verified a loose file's.
                verify=not isinstance(tree, ZipTree),
            )
        return 255 - taken if self.invert else taken

    def all(self) -> Pixels:
        """Return all images decoded, `[rows, per_class, 1, size, size]`."""
        rows, images = np.divmod(np.arange(self.shape[0] * self.shape[1]), self.shape[1])
        return self.take(rows, images).reshape(self.shape)


def fetch_tree(
    folder: Path,
    name: str,
    *,
    url: str,
    md5: str,
    content: str,
    max_bytes: int,
    progress: Progress | None = None,
    opener: Opener = open_https,
) -> Path:
    """Download `folder/name.zip` unless the tree is there with the right images; return the archive's or folder's path.

    `md5` is that of the archive, `content` the `content_digest` of what it holds. Raises `DataError`, `StorageError`.
    """

    def check(path: Path) -> None:
        found = content_digest(ZipTree(path))
        if found != content:
            raise DataError(
                f"the archive does not hold the images it should: their content digest is {found}",
                where=url,
                remedy="do not use the file; report this to the authors of the data set's plugin",
            )

    tree = open_tree(folder, name)
    if tree is not None and _is_intact(tree, content):
        return tree.path
    return download(
        url, folder / f"{name}.zip", md5=md5, max_bytes=max_bytes, check=check, progress=progress, opener=opener
    )


def _is_intact(tree: Tree, content: str) -> bool:
    try:
        return content_digest(tree) == content
    except DataError:
        # What is damaged is fetched anew: that is what the caller asks for.
        return False
