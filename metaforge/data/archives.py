"""Reads untrusted zip archives: the whole listing is validated first, members are read in place, none is extracted."""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from metaforge.errors import DataError

_END_RECORD, _ZIP64_LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_LOCAL_HEADER_BYTES = 30
# For other compression methods `zipfile` cannot limit how many bytes a single read decompresses.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_NAME_BYTES = 255
_TOO_LARGE = "fetch the file again; if it is your own archive, put a folder of its files in its place"
# The exceptions that `zipfile` raises for damaged archives; they have no common base class except `Exception`.
ZIP_ERRORS: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError)
ZIP_ERRORS += (NotImplementedError, RuntimeError, ValueError, KeyError, ArithmeticError)


@dataclass(frozen=True)
class Limits:
    """Limits on an archive.

    Args:
        members: Largest number of members.
        member_bytes: Largest uncompressed size of one member, in bytes.
        total_bytes: Largest uncompressed size of all members together, in bytes.
        ratio: Largest ratio of uncompressed to compressed size of a member.
        ratio_from_bytes: Members with at most this many uncompressed bytes may have any ratio.
    """

    # The most that an archive can have without zip64.
    members: int = 65_535
    member_bytes: int = 2**28
    total_bytes: int = 4 * 2**30
    ratio: int = 100
    ratio_from_bytes: int = 2**20


def open_zip(path: Path, limits: Limits = Limits()) -> zipfile.ZipFile:
    """Return an open zip file after validating its listing; raise `DataError`, naming the file, if it is invalid."""
    try:
        _check_directory_size(path, limits)
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise archive_error(path, f"the archive cannot be read ({error.strerror or error})") from error
    except ZIP_ERRORS as error:
        raise archive_error(path, f"the archive is truncated or is not a zip file ({error})") from error
    try:
        _check_listing(path, archive, limits)
    except DataError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int = Limits.member_bytes) -> bytes:
    """Return the bytes of a member after verifying its checksum; raise `DataError`, naming it, if it is damaged."""
    path = Path(archive.filename or "archive")
    try:
        if (size := archive.getinfo(name).file_size) > max_bytes:
            raise archive_error(path, f"member {name!r} has {size:,} bytes, more than {max_bytes:,}")
        with archive.open(name) as file:
            # `read()` without a size would decompress everything, however small the size in the directory is.
            data = file.read(size + 1)
    except ZIP_ERRORS as error:
        raise archive_error(path, f"member {name!r} is damaged ({error})") from error
    if len(data) != size:
        raise archive_error(path, f"member {name!r} is damaged ({len(data):,} bytes, not {size:,})")
    return data


def archive_error(path: Path, what: str, *, remedy: str = "delete the file and fetch it again") -> DataError:
    """Return the error for an archive that must not be used."""
    return DataError(what, where=str(path), remedy=remedy)


def _check_directory_size(path: Path, limits: Limits) -> None:
    """Reject a directory of millions of entries before `zipfile` creates an object for each of them."""
    if not path.is_file():
        # Opening a named pipe would block until another process writes to it.
        raise archive_error(path, "the archive cannot be read (it is missing or is not a regular file)")
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        tail_start = file.seek(max(0, length - 2**16 - 22))
        tail = file.read()
        start = tail.rfind(_END_RECORD)
        if start < 0 or len(tail) - start < 22:
            raise zipfile.BadZipFile("the end of central directory record is missing")
        if tail[max(0, start - 20) :].startswith(_ZIP64_LOCATOR):
            raise archive_error(
                path, "the archive uses zip64, which only archives beyond the limits here need", remedy=_TOO_LARGE
            )
        directory_bytes = int.from_bytes(tail[start + 12 : start + 16], "little")
        if directory_bytes > limits.members * 512:
            raise archive_error(path, f"the archive's directory of {directory_bytes:,} bytes is too large")
        file.seek(max(0, tail_start + start - directory_bytes))
        entries = file.read(directory_bytes).count(_ENTRY)
    if entries > limits.members:
        raise archive_error(
            path, f"the archive has {entries:,} members, more than {limits.members:,}", remedy=_TOO_LARGE
        )


def _check_listing(path: Path, archive: zipfile.ZipFile, limits: Limits) -> None:
    """Raise `DataError` if a name is unsafe or ambiguous, a size exceeds the limits, or members overlap."""
    members, total, end = archive.infolist(), 0, 0
    files, folders = set[str](), dict[str, str]()
    for member in members:
        if problem := _member_problem(member, limits) or _name_conflict(member, files, folders):
            raise archive_error(path, f"member {member.orig_filename[:200]!r} {problem}")
        total += member.file_size
    if not 0 < total <= limits.total_bytes:
        raise archive_error(path, f"the archive unpacks to {total:,} bytes, not 1 to {limits.total_bytes:,}")
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise archive_error(path, f"member {member.filename[:200]!r} overlaps with another member")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
    if end > archive.start_dir:
        # An overstated compressed size would make a high compression ratio look harmless.
        raise archive_error(path, "the compressed size of its last member makes it reach into the directory")


def _name_conflict(member: zipfile.ZipInfo, files: set[str], folders: dict[str, str]) -> str | None:
    """Return why a member's name conflicts with an earlier one, or None; add the name to `files` and `folders`.

    `files` holds normalised names, `folders` maps normalised names to the original spelling.
    """
    name = member.filename.rstrip("/")
    folder = name
    if not member.is_dir():
        if (key := _normalised_name(name)) in files or key in folders:
            return "occurs twice, or as a file and as a folder"
        files.add(key)
        folder = name.rpartition("/")[0]
    # When a folder has been seen before, all its parents have been, too.
    while folder and folders.get(key := _normalised_name(folder)) != folder:
        if key in files:
            return "occurs twice, or as a file and as a folder"
        if key in folders:
            return f"is in a folder that is {folders[key][:200]!r} elsewhere: the case or the form of accents differs"
        folders[key] = folder
        folder = folder.rpartition("/")[0]
    return None


def _normalised_name(name: str) -> str:
    """Return a name without the distinctions that macOS and Windows ignore: case and the Unicode form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _member_problem(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    """Return why a member is not acceptable, or None."""
    # `filename` has been cut at NUL bytes, and its separators were replaced: only `orig_filename` is what the file has.
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\0" in name or "\\" in name or ":" in name or ".." in parts:
        return "would leave the folder it is unpacked in"
    if "" in parts or "." in parts or not name.isprintable() or any(part != part.rstrip(" .") for part in parts):
        return "has a name that is not a plain relative path"
    if any(len(part.encode(errors="surrogatepass")) > _NAME_BYTES for part in parts):
        return f"has a path component of more than {_NAME_BYTES} bytes"
    if member.filename != name:
        # Newer Python versions take the name from an extra field, but the checks above were made on the other name.
        return "has a second name"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a regular file"
    if (kind != 0 and member.is_dir() != (kind == stat.S_IFDIR)) or (member.is_dir() and member.file_size):
        return "is a folder by its name or by its file type, but not by both"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in _METHODS:
        return f"uses compression method {member.compress_type}; only stored and deflated members are read"
    if name.lower().endswith(_ARCHIVES):
        return "is an archive within the archive"
    size = member.file_size
    if size > limits.member_bytes or size > max(limits.ratio_from_bytes, limits.ratio * member.compress_size):
        return f"claims to unpack to {size:,} bytes from {member.compress_size:,}"
    return None
