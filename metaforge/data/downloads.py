"""Downloads over https with a known digest; a file gets its final name only when it is complete and verified."""

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
from metaforge.system.files import free_space, is_no_space

Progress = Callable[[str, int, int | None], None]
"""Called with the file name, the bytes received so far, and the total bytes (None if the server does not send it)."""

_BLOCK = 2**18
# A partial file that has not changed for this long was left behind by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600


class Response(Protocol):
    """The part of an HTTP response that a download uses, as `urllib.request.urlopen` returns it."""

    headers: Message

    def read(self, size: int, /) -> bytes: ...


Opener = Callable[[str], AbstractContextManager[Response]]
"""Opens a URL and returns a context manager of the response, like `open_https`; tests pass their own."""


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to another https address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, *, timeout: float = 30) -> AbstractContextManager[Response]:
    """Open an https URL and return the response as a context manager.

    Args:
        url: The address. Redirections are followed to https addresses only.
        timeout: How long to wait for the server to connect or to send more data, in seconds.

    Returns:
        A context manager of a response with `headers` and `read(size)`.

    Raises:
        DataError: The address, or one that it redirects to, is not an https address.
        OSError: The connection fails.

    Example:
        >>> from metaforge.data import open_https
        >>> open_https("http://example.org/images.zip")
        Traceback (most recent call last):
        ...
        metaforge.errors.DataError: only https addresses are fetched
          where: http://example.org/images.zip
          remedy: use an address that begins with https://
    """
    _check_https(url)
    opener = urllib.request.build_opener(_HttpsOnly)
    request = urllib.request.Request(url, headers={"User-Agent": "metaforge", "Accept-Encoding": "identity"})
    response: AbstractContextManager[Response] = opener.open(request, timeout=timeout)
    return response


def _check_https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise DataError(
            "only https addresses are fetched", where=url, remedy="use an address that begins with https://"
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
    """Download a file and return its path; the path appears only when the file is complete and verified.

    Args:
        url: An https address.
        target: Where to put the file. Missing parent folders are created.
        md5: Expected MD5 digest of the file, as hexadecimal digits.
        max_bytes: The download is aborted if the file is longer than this.
        check: Called with the path of the complete partial file; it raises an exception to reject the file.
        progress: Called after each block that is received.
        opener: Opens the address.

    Returns:
        `target`.

    Raises:
        DataError: The download fails, is too long or has another digest.
        StorageError: The file cannot be written.
    """
    _check_https(url)
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # `check` may depend on the suffix. The name is unique: two processes may download the same file at a time.
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=f".part{target.suffix}", dir=target.parent)
        part = Path(name)
        _remove_abandoned(part, target)
        with os.fdopen(handle, "wb") as file:
            digest = _copy_response(url, file, target, max_bytes, progress, opener)
        if digest != md5:
            raise _digest_error(url, target, digest, md5)
        if check is not None:
            check(part)
        part.chmod(0o644)
        part.replace(target)
    except OSError as error:
        raise _write_error(error, target, max_bytes) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return target


def _digest_error(url: str, target: Path, digest: str, md5: str) -> DataError:
    return DataError(
        f"the download's MD5 is {digest}, not {md5}: it is incomplete or is another file",
        where=url,
        remedy=f"try again, or put the right file at {target} by hand",
    )


def _write_error(error: OSError, target: Path, max_bytes: int) -> StorageError:
    space = f" At most {max_bytes:,} bytes are needed.{free_space(target.parent)}" if is_no_space(error) else ""
    return StorageError(
        f"the download cannot be written: {error.strerror or error}.{space}",
        where=str(target),
        remedy="choose a folder that can be written to, on a disk with enough free space",
    )


def _remove_abandoned(part: Path, target: Path) -> None:
    """Delete partial files of `target` that killed processes have left; those of running downloads are more recent."""
    now = part.stat().st_mtime
    for other in target.parent.glob(f".{glob.escape(target.stem)}-*.part{glob.escape(target.suffix)}"):
        with contextlib.suppress(FileNotFoundError):
            if now - other.stat().st_mtime > _ABANDONED_SECONDS:
                other.unlink()


def _copy_response(
    url: str, file: IO[bytes], target: Path, max_bytes: int, progress: Progress | None, opener: Opener
) -> str:
    """Copy the response body into `file` and return its MD5 digest."""
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    for block, total in _response_blocks(url, target, opener):
        done += len(block)
        if max(done, total or 0) > max_bytes:
            raise DataError(f"the response is longer than {max_bytes:,} bytes", where=url, remedy="check the address")
        digest.update(block)
        file.write(block)
        if progress is not None:
            progress(target.name, done, total)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _response_blocks(url: str, target: Path, opener: Opener) -> Iterator[tuple[bytes, int | None]]:
    """Yield blocks of the response body, each with the announced total length; raise `DataError` if the network fails.

    A generator separates the two sources of `OSError`: those of the network are raised in here, those of the disk in
    the body of the caller's loop.
    """
    try:
        with opener(url) as response:
            length = response.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else None
            while block := response.read(_BLOCK):
                yield block, total
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
        # Invalid addresses and headers raise the last two.
        raise DataError(
            f"the download failed: {error}",
            where=url,
            remedy=f"check the network and try again, or put the file at {target} by hand",
        ) from error
