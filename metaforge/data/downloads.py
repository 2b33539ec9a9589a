"""Downloads by https alone, their digest pinned: nothing half-fetched ever has the final name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from metaforge.errors import DataError, StorageError
from metaforge.system.files import free_space

Progress = Callable[[str, int, int | None], None]
"""Called with what is fetched, the bytes so far and the bytes in all (None where the server does not say)."""

_BLOCK = 2**18
# A partial file that old belongs to no download that is still under way.
_ABANDONED_SECONDS = 24 * 3600


class Response(Protocol):
    """What a download needs of an answer: its headers and its bytes (as `urllib.request.urlopen` gives them)."""

    headers: Message

    def read(self, size: int, /) -> bytes: ...


Opener = Callable[[str], AbstractContextManager[Response]]


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to another https address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, *, timeout: float = 30) -> AbstractContextManager[Response]:
    """Open an https address; anything else, also where it is led to, is refused with `DataError`.

    `timeout` is how many seconds the other side may be silent.
    """
    _check_https(url)
    opener = urllib.request.build_opener(_HttpsOnly)
    request = urllib.request.Request(url, headers={"User-Agent": "metaforge", "Accept-Encoding": "identity"})
    answer: AbstractContextManager[Response] = opener.open(request, timeout=timeout)
    return answer


def _check_https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise DataError(
            "only https addresses are fetched", where=url, remedy="give an address that begins with https://"
        )


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    opener: Opener = open_https,
) -> Path:
    """Fetch `url` into `target`, which appears complete and verified or not at all; return `target`.

    `check` may raise on the fetched file before it gets its name. Raises `DataError` for a failed or wrong download,
    `StorageError` where it cannot be written.
    """
    _check_https(url)
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays: `check` may go by it. The name is unique: two processes may fetch at once.
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=f".part{target.suffix}", dir=target.parent)
        part = Path(name)
        _sweep(part, target)
        with os.fdopen(handle, "wb") as file:
            found = _fetch(url, file, target, max_bytes, progress, opener)
        if found != md5:
            raise DataError(
                f"the download's MD5 is {found}, not {md5}: it is incomplete or another file",
                where=url,
                remedy=f"try again, or put the right file at {target} by hand",
            )
        if check is not None:
            check(part)
        part.chmod(0o644)
        part.replace(target)
    except OSError as error:
        raise StorageError(
            f"the download cannot be written: {error.strerror or error}. At most {max_bytes:,} bytes are needed."
            f"{free_space(target.parent)}",
            where=str(target),
            remedy="choose a folder that may be written, on a disk with free space",
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return target


def _sweep(part: Path, target: Path) -> None:
    """Delete what downloads that were killed have left of `target` (those under way write younger files)."""
    now = part.stat().st_mtime
    for other in target.parent.glob(f".{glob.escape(target.stem)}-*.part{glob.escape(target.suffix)}"):
        with contextlib.suppress(FileNotFoundError):
            if now - other.stat().st_mtime > _ABANDONED_SECONDS:
                other.unlink()


def _fetch(url: str, file: IO[bytes], target: Path, max_bytes: int, progress: Progress | None, opener: Opener) -> str:
    """Copy the answer of `url` into `file` and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    for block, total in _blocks(url, target, opener):
        done += len(block)
        if max(done, total or 0) > max_bytes:
            raise DataError(f"the answer is longer than {max_bytes:,} bytes", where=url, remedy="check the address")
        digest.update(block)
        file.write(block)
        if progress is not None:
            progress(target.name, done, total)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(url: str, target: Path, opener: Opener) -> Iterator[tuple[bytes, int | None]]:
    """Yield the answer's blocks, each with the number of bytes announced; what the network raises is a `DataError`."""
    # A generator keeps the two kinds of `OSError` apart: the disk's are raised in the loop's body, outside this frame.
    try:
        with opener(url) as answer:
            length = answer.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else None
            while block := answer.read(_BLOCK):
                yield block, total
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
        # The last two are what addresses and headers that make no sense end in.
        raise DataError(
            f"the download failed: {error}",
            where=url,
            remedy=f"check the network and try again, or put the file at {target} by hand",
        ) from error
