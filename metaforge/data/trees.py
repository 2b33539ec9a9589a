"""Read access to the files of a data set, through one interface for a folder and for a zip archive."""

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
from metaforge.data.class_pool import Pixels
from metaforge.data.downloads import Opener, Progress, download, open_https
from metaforge.data.images import MAX_BYTES, Colour, Resample, decode_image, read_file
from metaforge.data.random_numbers import Indices
from metaforge.errors import DataError


class Tree(Protocol):
    """The files of a zip archive or a folder, by name.

    A name has the form `top-folder/.../file`, whichever of the two it is. `path` is the archive or folder on disk.
    `open_tree` returns an object of this type, and has an example.
    """

    path: Path

    @property
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; raise `DataError`, naming the file, if it is damaged or missing."""
        ...

    def stamp(self) -> str:
        """Return a string that changes when the files change; it depends on sizes and modification times only."""
        ...


class ZipTree:
    """The files of a zip archive, whose listing is validated on first access."""

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
        """Return the bytes of a member after verifying its checksum."""
        return read_member(self._archive, name, max_bytes=MAX_BYTES)

    def stamp(self) -> str:
        """Return the archive's size and modification time; the archive is not opened."""
        status = self.path.stat()
        return f"{status.st_size}/{status.st_mtime_ns}"


class FolderTree:
    """The files below a folder; symbolic links to folders are ignored, and those to files must stay in the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        names: list[str] = []

        def raise_error(error: OSError) -> None:
            raise _read_error(Path(error.filename or self.path), error) from error

        for folder, _, files in os.walk(self.path, onerror=raise_error):
            for file in files:
                self._check_link(os.path.join(folder, file))
            prefix = Path(folder).relative_to(self.path.parent).as_posix()
            names.extend(f"{prefix}/{file}" for file in files)
        return sorted(names)

    def _check_link(self, file: str) -> None:
        """Raise `DataError` for a symbolic link to a file outside the folder."""
        if os.path.islink(file) and not os.path.realpath(file).startswith(os.path.realpath(self.path) + os.sep):
            raise DataError(
                "the symbolic link leads out of the folder of the data set",
                where=file,
                remedy="replace the link with the file itself, or remove it",
            )

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return read_file(self.path.parent / name)

    def stamp(self) -> str:
        """Return a digest of the names, sizes and modification times of all files."""
        digest = hashlib.sha256()
        base = str(self.path.parent)
        for name in self.names:
            try:
                status = os.stat(f"{base}/{name}")
            except OSError as error:
                raise _read_error(self.path.parent / name, error) from error
            digest.update(os.fsencode(f"{name}/{status.st_size}/{status.st_mtime_ns}\n"))
        return digest.hexdigest()


def _read_error(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the file or folder cannot be read: {error.strerror or error}",
        where=str(path),
        remedy="correct its permissions, remove it if it is a broken link, or install the data set again",
    )


def open_tree(folder: Path, name: str) -> Tree | None:
    """Return the files of an archive or a folder of that name.

    Args:
        folder: Where the archive or folder is.
        name: Its name, without `.zip`. The archive is preferred if both are present.

    Returns:
        The files of `folder/name.zip` or of `folder/name/`, or None if neither exists.

    Example:
        >>> import tempfile, zipfile
        >>> from pathlib import Path
        >>> from metaforge.data import open_tree
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(Path(folder) / "letters.zip", "w") as archive:
        ...         archive.writestr("letters/a.txt", "alpha")
        ...     tree = open_tree(Path(folder), "letters")
        ...     tree.names, tree.read("letters/a.txt")
        (['letters/a.txt'], b'alpha')
    """
    archive = folder / f"{name}.zip"
    # `os.path.isfile` and `isdir` return False for a name that is too long, where `Path.is_file` raises.
    if os.path.isfile(archive):
        return ZipTree(archive)
    return FolderTree(folder / name) if os.path.isdir(folder / name) else None


def content_digest(tree: Tree, suffix: str = ".png") -> str:
    """Return the SHA-256 digest of the sorted names and the decoded grey pixels of a tree's images.

    It does not depend on how the images are archived or compressed, nor on their modification times.
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
    """Images in files, decoded on access; use it as the `images` of a `ClassPool`.

    Args:
        places: `places[row][image]` is the tree and the name of the file. Rows can have different numbers of images:
            pass `sizes` to the `ClassPool`.
        size: Height and width to which the images are resized.
        resample: Filter for resizing.
        invert: Whether to replace each value v by 255 - v, which turns dark ink on white into light ink on black.
        colour: `grey` for one channel, `rgb` for three.

    Example:
        >>> import io, tempfile, zipfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from metaforge.data import ClassPool, TreeImages, open_tree
        >>> file = io.BytesIO()
        >>> Image.new("L", (20, 20)).save(file, "PNG")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(Path(folder) / "letters.zip", "w") as archive:
        ...         for name in ("letters/a.png", "letters/b.png"):
        ...             archive.writestr(name, file.getvalue())
        ...     tree = open_tree(Path(folder), "letters")
        ...     images = TreeImages([[(tree, name)] for name in tree.names], size=8)
        ...     ClassPool(images, ["a", "b"]).image_shape, images.all().shape
        ((1, 8, 8), (2, 1, 1, 8, 8))
    """

    places: Sequence[Sequence[tuple[Tree, str]]]
    size: int
    resample: Resample = "box"
    invert: bool = False
    colour: Colour = "grey"

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(rows, per_class, C, size, size)`, where `per_class` is the length of the longest row."""
        return len(self.places), max(map(len, self.places)), 1 if self.colour == "grey" else 3, self.size, self.size

    @property
    def sizes(self) -> Indices:
        """Return the number of images of each row `[rows]`."""
        return np.array([len(row) for row in self.places])

    def take(self, classes: Indices, images: Indices) -> Pixels:
        """Return images `[n, C, size, size]` for row and image numbers `[n]`; raise `DataError` if one is damaged."""
        taken = np.empty((len(classes), *self.shape[2:]), dtype=np.uint8)
        for position, (row, image) in enumerate(zip(classes.tolist(), images.tolist(), strict=True)):
            tree, name = self.places[row][image]
            taken[position] = decode_image(
                tree.read(name),
                where=f"{tree.path}: {name!r}",
                size=self.size,
                colour=self.colour,
                resample=self.resample,
                # `read_member` has verified the checksum of a zip member; a file in a folder has not been verified.
                verify=not isinstance(tree, ZipTree),
            )
        return 255 - taken if self.invert else taken

    def all(self) -> Pixels:
        """Return all images decoded, `[rows, per_class, C, size, size]`; what a shorter row does not have is 0."""
        pixels = np.zeros(self.shape, dtype=np.uint8)
        for row, size in enumerate(self.sizes.tolist()):  # not all at once, which would take twice the memory
            pixels[row, :size] = self.take(np.full(size, row), np.arange(size))
        return pixels


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
    """Download `folder/name.zip`, unless an archive or folder of that name has the right images already.

    Args:
        folder: Where the archive is stored.
        name: Its name, without `.zip`.
        url: An https address.
        md5: MD5 digest of the archive, as hexadecimal digits.
        content: SHA-256 digest of the names and pixels of its images (`metaforge.data.trees.content_digest`).
        max_bytes: The download is aborted if the archive is longer than this.
        progress: Called after each block that is received.
        opener: Opens the address; the default is `open_https`.

    Returns:
        The path of the archive, or of the folder that has the images already.

    Raises:
        DataError: The download fails, or the archive is not the expected one.
        StorageError: The archive cannot be written.

    Example:
        In the class method `fetch` of a data set::

            fetch_tree(root / "letters", "images", url=URL, md5=MD5, content=CONTENT, max_bytes=64 * 2**20)
    """
    tree = open_tree(folder, name)
    if tree is not None and _is_intact(tree, content):
        return tree.path

    def check(path: Path) -> None:
        _check_content(path, content, url)

    return download(
        url, folder / f"{name}.zip", md5=md5, max_bytes=max_bytes, check=check, progress=progress, opener=opener
    )


def _check_content(path: Path, content: str, url: str) -> None:
    digest = content_digest(ZipTree(path))
    if digest != content:
        raise DataError(
            f"the archive does not hold the expected images: their content digest is {digest}",
            where=url,
            remedy="do not use the file; report this to the authors of the data set's plugin",
        )


def _is_intact(tree: Tree, content: str) -> bool:
    try:
        return content_digest(tree) == content
    except DataError:
        # A damaged archive or folder counts as missing, so that it is downloaded again.
        return False
