"""Arrays kept on disk between runs: written beside and renamed, verified when read, built again if damaged."""

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

from metaforge.data.archives import DAMAGE
from metaforge.system.files import free_space

Arrays = dict[str, NDArray[Any]]

# Also what numpy raises where the header of an array makes no sense.
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, MemoryError, SyntaxError, TypeError, tokenize.TokenError)
# The member that lists the others: a damaged directory may have lost some.
_LIST = "list of arrays"


def cache_folder() -> Path:
    """Return the folder of caches: `METAFORGE_CACHE`, else the user's cache folder of the operating system."""
    given = os.environ.get("METAFORGE_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("metaforge"))


def cached(name: str, key: Mapping[str, object], build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `build` makes, from the cache if it holds them for this `key`.

    `key` must hold all that the arrays depend on, with a `repr` that is stable. A cache that is damaged or cannot be
    written costs time, not the run: both are warned of.
    """
    digest = hashlib.sha256(repr((_LIST, sorted(key.items()))).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{digest}.npz"
    if path.exists():
        try:
            return _read(path)
        except _DAMAGE as error:
            warnings.warn(f"the cache {path} is damaged and is built again ({error})", RuntimeWarning, stacklevel=2)
    arrays = build()
    try:
        _write(path, {**arrays, _LIST: np.array(list(arrays))})
    except OSError as error:
        warnings.warn(
            f"the cache {path} cannot be written ({error}; {sum(array.nbytes for array in arrays.values()):,} bytes are"
            f" needed.{free_space(path)}): the next run will read the data set again; set METAFORGE_CACHE to a folder"
            " that may be written",
            RuntimeWarning,
            stacklevel=2,
        )
    return arrays


def _read(path: Path) -> Arrays:
    """Read an archive of arrays; its zip checksums are verified on the way."""
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    if sorted(arrays.pop(_LIST).tolist()) != sorted(arrays):
        raise ValueError("it does not hold what it says")
    return arrays


def _write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            # Stored, not compressed: reading back must be faster than decoding the images.
            np.savez(file, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
