"""Archives and downloads that are checked before they are used: nothing half-fetched ever has the final name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import stat
import struct
import tempfile
import unicodedata
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from metaforge.errors import DataError, StorageError

Progress = Callable[[str, int, int | None], None]
"""Called with what is fetched, the bytes so far and the bytes in all (None where the server does not say)."""

_BLOCK = 2**18
_END_RECORD, _WIDE_RECORD, _ENTRY = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_LOCAL_HEADER_BYTES = 30
# Of other methods zipfile cannot bound what one read unpacks.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_NAME_BYTES = 255
# A partial file that old belongs to no download that is still under way.
_ABANDONED_SECONDS = 24 * 3600
# What zipfile raises on damaged archives: there is no common base but Exception.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError)
_DAMAGE += (NotImplementedError, RuntimeError, ValueError, KeyError, ArithmeticError)


class Response(Protocol):
    """What a download needs of an answer: its headers and its bytes (as `urllib.request.urlopen` gives them)."""

    headers: Message

    def read(self, size: int, /) -> bytes: ...


Opener = Callable[[str], AbstractContextManager[Response]]


@dataclass(frozen=True)
class Limits:
    """What an archive may hold: members, unpacked bytes, and how many times a large member may be compressed."""

    members: int = 60_000
    member_bytes: int = 2**28
    total_bytes: int = 4 * 2**30
    ratio: int = 100
    ratio_from_bytes: int = 2**20


def open_zip(path: Path, limits: Limits = Limits()) -> zipfile.ZipFile:
    """Return an open zip file, its whole listing validated; `DataError`, naming the file, if it is refused."""
    try:
        _check_directory_size(path, limits)
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise refused(path, f"the archive cannot be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        raise refused(path, f"the archive is truncated or no zip file ({error})") from error
    try:
        _check_listing(path, archive.infolist(), limits)
    except DataError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return one member's bytes, the checksum verified; `DataError`, naming archive and member, if it is damaged."""
    path = Path(archive.filename or "archive")
    try:
        size = archive.getinfo(name).file_size
        with archive.open(name) as file:
            # Reading without a number would unpack all that is there, whatever the directory says of it.
            data = file.read(size + 1)
    except _DAMAGE as error:
        raise refused(path, f"member {name!r} is damaged ({error})") from error
    if len(data) != size:
        raise refused(path, f"member {name!r} is damaged ({len(data):,} bytes, not {size:,})")
    return data


def refused(path: Path, what: str) -> DataError:
    """Return the error for an archive that must not be used."""
    return DataError(what, where=str(path), remedy="delete the file and fetch it again")


def _check_directory_size(path: Path, limits: Limits) -> None:
    """Refuse a directory of millions of entries before `zipfile` builds an object for each of them."""
    if not path.is_file():
        # Opening a pipe would wait for somebody to write into it.
        raise refused(path, "the archive cannot be read (it is missing or no file)")
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        tail_start = file.seek(max(0, length - 2**16 - 22))
        tail = file.read()
        start = tail.rfind(_END_RECORD)
        if start < 0 or len(tail) - start < 22:
            raise zipfile.BadZipFile("its closing record is missing")
        if tail[max(0, start - 20) :].startswith(_WIDE_RECORD):
            raise refused(path, "the archive has a second closing record (zip64), of use only beyond the limits here")
        directory_bytes = int.from_bytes(tail[start + 12 : start + 16], "little")
        if directory_bytes > limits.members * 512:
            raise refused(path, f"the archive's directory of {directory_bytes:,} bytes is too large")
        file.seek(max(0, tail_start + start - directory_bytes))
        entries = file.read(directory_bytes).count(_ENTRY)
    if entries > limits.members:
        raise refused(path, f"the archive has {entries:,} members, more than {limits.members:,}")


def _check_listing(path: Path, members: list[zipfile.ZipInfo], limits: Limits) -> None:
    """Raise `DataError` for a listing that could write outside its folder, exhaust the machine or mean two things."""
    total, ends = 0, 0
    files, folders = set[str](), set[str]()
    for member in members:
        if fault := _fault(member, limits) or _clash(member, files, folders):
            raise refused(path, f"member {member.orig_filename[:200]!r} {fault}")
        total += member.file_size
    if not 0 < total <= limits.total_bytes:
        raise refused(path, f"the archive unpacks to {total:,} bytes, not 1 to {limits.total_bytes:,}")
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < ends:
            raise refused(path, f"member {member.filename[:200]!r} shares its bytes with another")
        ends = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size


def _clash(member: zipfile.ZipInfo, files: set[str], folders: set[str]) -> str | None:
    """Return whether a member's name means another's place, and add it to the files and folders seen so far."""
    # Names that differ in case or in the form of their accents alone are one file on macOS and Windows.
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", member.filename.rstrip("/")).casefold())
    parents = [name[:end] for end, character in enumerate(name) if character == "/"]
    own = folders if member.is_dir() else files
    if name in files or (name in folders and not member.is_dir()) or not files.isdisjoint(parents):
        return "occurs twice, or as a file and as a folder"
    own.add(name)
    folders.update(parents)
    return None


def _fault(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    """Return why a member is not acceptable, or None."""
    # `orig_filename` is the name before zipfile cuts it at a NUL and rewrites separators.
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\0" in name or "\\" in name or ":" in name or ".." in parts:
        return "would leave the folder it is unpacked in"
    if "" in parts or "." in parts or not name.isprintable() or any(part != part.rstrip(" .") for part in parts):
        return "has a name that is no plain path of a file"
    if any(len(part.encode(errors="surrogatepass")) > _NAME_BYTES for part in parts):
        return f"has a name of more than {_NAME_BYTES} bytes"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if (kind != 0 and member.is_dir() != (kind == stat.S_IFDIR)) or (member.is_dir() and member.file_size):
        return "is a folder by its name or its kind, but not by both"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in _METHODS:
        return f"is packed by method {member.compress_type}; only stored and deflated members are read"
    if name.lower().endswith(_ARCHIVES):
        return "is an archive within the archive"
    claimed = member.file_size
    if claimed > limits.member_bytes or claimed > max(limits.ratio_from_bytes, limits.ratio * member.compress_size):
        return f"claims to unpack to {claimed:,} bytes from {member.compress_size:,}"
    return None


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to another https address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, *, timeout: float = 30) -> AbstractContextManager[Response]:
    """Open an https address; redirections to anything else are refused with `DataError`.

    `timeout` is how many seconds the other side may be silent.
    """
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
            f"the download cannot be written: {error.strerror or error}",
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
