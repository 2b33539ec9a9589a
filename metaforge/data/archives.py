"""Zip archives that are checked before they are used, and read in place: nothing is ever extracted."""

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

_END_RECORD, _WIDE_RECORD, _ENTRY = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_LOCAL_HEADER_BYTES = 30
# Of other methods zipfile cannot bound what one read unpacks.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_NAME_BYTES = 255
# What zipfile raises on damaged archives: there is no common base but Exception.
DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError)
DAMAGE += (NotImplementedError, RuntimeError, ValueError, KeyError, ArithmeticError)


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
    except DAMAGE as error:
        raise refused(path, f"the archive is truncated or no zip file ({error})") from error
    try:
        _check_listing(path, archive, limits)
    except DataError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int = Limits.member_bytes) -> bytes:
    """Return one member's bytes, the checksum verified; `DataError`, naming archive and member, if it is damaged."""
    path = Path(archive.filename or "archive")
    try:
        if (size := archive.getinfo(name).file_size) > max_bytes:
            raise refused(path, f"member {name!r} has {size:,} bytes, more than {max_bytes:,}")
        with archive.open(name) as file:
            # Reading without a number would unpack all that is there, whatever the directory says of it.
            data = file.read(size + 1)
    except DAMAGE as error:
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


def _check_listing(path: Path, archive: zipfile.ZipFile, limits: Limits) -> None:
    """Raise `DataError` for a listing that could write outside its folder, exhaust the machine or mean two things."""
    members, total, ends = archive.infolist(), 0, 0
    files, folders = set[str](), dict[str, str]()
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
    if ends > archive.start_dir:
        # Who lies about the packed size lies about the ratio.
        raise refused(path, "its last member is said to reach into the directory")


def _clash(member: zipfile.ZipInfo, files: set[str], folders: dict[str, str]) -> str | None:
    """Return whether a member's name means another's place; add it to the files, and to the folders as spelled."""
    name = member.filename.rstrip("/")
    folder = name
    if not member.is_dir():
        if (own := _alike(name)) in files or own in folders:
            return "occurs twice, or as a file and as a folder"
        files.add(own)
        folder = name.rpartition("/")[0]
    # A folder that is known has its parents known, too.
    while folder and folders.get(own := _alike(folder)) != folder:
        if own in files:
            return "occurs twice, or as a file and as a folder"
        if own in folders:
            return f"lies in a folder that is {folders[own][:200]!r} elsewhere, in another case or form of its accents"
        folders[own] = folder
        folder = folder.rpartition("/")[0]
    return None


def _alike(name: str) -> str:
    """Return a name without what macOS and Windows do not tell apart: case, and the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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
    if member.filename != name:
        # Python takes it from an extra field, and by now this function has judged the other.
        return "has a second name"
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
