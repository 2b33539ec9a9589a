"""A cache of arrays on disk: written atomically, verified when it is read, and rebuilt if it is damaged."""

from __future__ import annotations

import hashlib
import os
import tempfile
import tokenize
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from metaforge.data.archives import ZIP_ERRORS
from metaforge.errors import DataError
from metaforge.system.files import space_text

Arrays = dict[str, NDArray[Any]]
"""Arrays by name."""

# NumPy raises the additional ones when it parses an invalid array header.
_READ_ERRORS: tuple[type[Exception], ...] = (*ZIP_ERRORS, MemoryError, SyntaxError, TypeError, tokenize.TokenError)
# A member that lists the names of the others: if the zip directory is damaged, entries may be missing from it.
_LIST = "list of arrays"


def cache_folder() -> Path:
    """Return the folder of all caches: `METAFORGE_CACHE` if it is set, else the user cache folder of the platform."""
    folder = os.environ.get("METAFORGE_CACHE")
    return Path(folder) if folder else Path(platformdirs.user_cache_dir("metaforge"))


def load_or_build(name: str, key: Mapping[str, object], build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays stored in the cache under a name and key, or build and store them.

    A damaged cache is rebuilt, and a cache that cannot be written is skipped; both emit a `RuntimeWarning`.

    Args:
        name: First part of the file name in the cache folder.
        key: Everything that the arrays depend on, such as options and the source file. The values need a stable `repr`.
        build: Returns the arrays. It is called only if the cache does not hold them.

    Returns:
        The arrays, as `build` returns them.

    Example:
        >>> import os, tempfile
        >>> from unittest.mock import patch
        >>> import numpy as np
        >>> from metaforge.data import load_or_build
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, METAFORGE_CACHE=folder):
        ...     first = load_or_build("squares", {"count": 4}, lambda: {"y": np.arange(4) ** 2})
        ...     second = load_or_build("squares", {"count": 4}, lambda: {"y": np.zeros(4)})  # it is not called
        >>> second["y"].tolist()
        [0, 1, 4, 9]
    """
    digest = hashlib.sha256(repr((_LIST, sorted(key.items()))).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{digest}.npz"
    if path.exists():
        try:
            return _read(path)
        except DataError as error:
            warnings.warn(
                f"the cache {path} is damaged and is built again ({error.what})", RuntimeWarning, stacklevel=2
            )
    arrays = build()
    try:
        _write(path, {**arrays, _LIST: np.array(list(arrays))})
    except OSError as error:
        space = space_text(error, path, sum(array.nbytes for array in arrays.values()))
        warnings.warn(
            f"the cache {path} cannot be written ({error}.{space}): the next run will read the data set again; set"
            " METAFORGE_CACHE to a folder that can be written to",
            RuntimeWarning,
            stacklevel=2,
        )
    return arrays


def read_arrays(path: Path) -> Arrays:
    """Return the arrays in an npz file, whose zip checksums are verified on reading; never a pickled object.

    Raises:
        DataError: The file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is not an npz file")
            with archive:
                return {name: archive[name] for name in archive.files}
    except _READ_ERRORS as error:
        raise DataError(
            f"the arrays cannot be read ({error})", where=str(path), remedy="write the file again"
        ) from error


def _read(path: Path) -> Arrays:
    """Return the arrays of a cache; raise `DataError` if some are missing."""
    arrays = read_arrays(path)
    if _LIST not in arrays or sorted(arrays.pop(_LIST).tolist()) != sorted(arrays):
        raise DataError("arrays are missing", where=str(path), remedy="write the file again")
    return arrays


def _write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            # Uncompressed: reading the cache must be faster than decoding the images.
            np.savez(file, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
