"""Row 11: archives that try to write elsewhere, to exhaust memory or time, or that are ambiguous."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import struct
import tarfile
import time
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from metaforge.cli.app import app
from metaforge.data.trees import ZipTree
from metaforge.errors import DataError
from metaforge_plugins.datasets import omniglot
from tests.reliability.rows import Measured, Workspace, row

TOP = "images_background"
CLASSES = 6
Members = list[tuple[str | zipfile.ZipInfo, bytes]]


def members(top: str = TOP) -> Members:
    """Return the members of a small archive of characters: names and contents."""
    content: Members = []
    for character in range(1, CLASSES + 1):
        for drawer in range(1, 21):
            file = io.BytesIO()
            pixels = np.random.default_rng(100 * character + drawer).integers(0, 2, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels * 255).save(file, "PNG")
            content.append((f"{top}/Runes/character{character:02d}/{character:04d}_{drawer:02d}.png", file.getvalue()))
    return content


def zip_of(content: Members, compression_method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of these members; their names are not checked."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(file, "w", compression_method) as archive:
            for name, data in content:
                archive.writestr(name, data, compress_type=compression_method)
    return file.getvalue()


def with_member(name: str, *, mode: int = 0, data: bytes = b"x") -> bytes:
    """Return a valid archive with one additional member, with this name and this file type."""
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr, info.create_system = name, mode << 16, 3
    return zip_of([*members(), (info, data)])


def with_bytes_replaced(data: bytes, signature: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    """Return an archive with the bytes at `offset` of its last (or first) record of a signature replaced."""
    place = (data.rindex if last else data.index)(signature) + offset
    return data[:place] + value + data[place + len(value) :]


ENTRY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def uint32(value: int) -> bytes:
    return struct.pack("<I", value)


def with_overlapping_entries() -> bytes:
    """Return an archive whose last two entries point to the same bytes."""
    data = zip_of([*members(), ("a", bytes(10**5)), ("b", bytes(10**5))])
    second = data.rindex(ENTRY)
    first = data.rindex(ENTRY, 0, second)
    return data[: second + 42] + data[first + 42 : first + 46] + data[second + 46 :]


def with_understated_size() -> bytes:
    """Return an archive whose directory states 100 bytes for a member that unpacks to 400 MB."""
    data = zip_of([*members()[:-1], (members()[-1][0], bytes(4 * 10**8))])
    data = with_bytes_replaced(data, ENTRY, 24, uint32(100))
    return with_bytes_replaced(data, LOCAL, 22, uint32(100))


def with_million_entries() -> bytes:
    """Return an archive whose directory lists a million members."""
    entry = ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    return b"".join([entry * 10**6, END, bytes(4), b"\xff\xff\xff\xff", uint32(len(entry) * 10**6), bytes(6)])


def with_small_directory() -> bytes:
    """Return an archive with 500,000 entries in its directory, of which the closing record states 1."""
    entry = ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    return b"".join([entry * 500_000, END, bytes(4), b"\1\0\1\0", uint32(len(entry) * 500_000), bytes(6)])


def with_zip64_record() -> bytes:
    """Return an archive whose zip64 closing record states a million entries, and the other one states 1."""
    directory = (ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a") * 10**6
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(directory), 1)
    return b"".join([directory, record, locator, END, bytes(4), b"\1\0\1\0", uint32(47), bytes(6)])


def tar_with_link(kind: bytes, mode: str = "w:gz") -> bytes:
    """Return a tar archive with one link or device that points outside."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "../../../etc/passwd"
        archive.addfile(info)
    return file.getvalue()


def with_compression(value: int) -> bytes:
    """Return an archive compressed with another method."""
    return zip_of([*members(), ("x.txt", bytes(10**6))], value)


CASES: dict[str, Callable[[], bytes]] = {
    **{
        f"traversal {name!r}": partial(with_member, name)
        for name in ("../evil", "../../evil", "a/../../evil", f"{TOP}/../evil", "a/..", "./../evil", "..")
    },
    **{
        what: partial(with_member, name)
        for what, name in {
            "absolute": "/evil",
            "drive letter": "C:/evil",
            "drive letter, relative": "C:evil",
            "network path": "//server/share/evil",
            "network path, backslashes": "\\\\server\\share\\evil",
            "backslashes": "a\\..\\..\\evil",
            "alternate stream": "a.png:evil",
            "NUL in the name": "a.png\0.exe",
            "newline in the name": "a\nb.png",
            "escape sequence in the name": "a\x1b[2Jb.png",
            "right-to-left mark in the name": "a\u202egnp.exe",
            "name of 300 bytes": "a" * 300 + ".png",
            "name of 200 characters, 400 bytes": "é" * 200,
            "name of spaces": "a/ /b.png",
            "name with a dot at its end": "a./b.png",
            "empty part of a name": "a//b.png",
            "dot as a part": "a/./b.png",
            "nested zip": "inner.zip",
            "nested tar": "inner.tar.gz",
        }.items()
    },
    **{
        what: partial(with_member, "special", mode=mode, data=b"/etc/passwd")
        for what, mode in {
            "symbolic link": stat.S_IFLNK | 0o777,
            "character device": stat.S_IFCHR | 0o666,
            "block device": stat.S_IFBLK | 0o666,
            "FIFO": stat.S_IFIFO | 0o666,
            "socket": stat.S_IFSOCK | 0o666,
            "folder by its mode only": stat.S_IFDIR | 0o755,
        }.items()
    },
    "empty name": lambda: with_member(""),
    "folder with content": lambda: with_member("folder/", data=b"content"),
    "duplicates": lambda: zip_of([*members(), members()[0]]),
    "names that differ only in case": lambda: zip_of([*members(), ("Ab", b"1"), ("aB", b"2")]),
    "names that differ only in Unicode normalisation": lambda: zip_of(
        [*members(), ("\u00e9", b"1"), ("e\u0301", b"2")]
    ),
    "file and folder of one name": lambda: zip_of([*members(), ("a", b"1"), ("a/b", b"2")]),
    "folder and file of one name": lambda: zip_of([*members(), ("a/b", b"1"), ("a", b"2")]),
    "folders that differ only in case": lambda: zip_of([*members(), ("x/A/1.txt", b"1"), ("X/a/2.txt", b"2")]),
    "ratio hidden by a false packed size": lambda: with_bytes_replaced(
        zip_of([*members()[:-1], (members()[-1][0], bytes(250 * 2**20))]), ENTRY, 20, uint32(3 * 2**20)
    ),
    "ratio of 1000": lambda: zip_of([*members(), ("zeros.png", bytes(3 * 2**20))]),
    "ratio hidden from the directory": with_understated_size,
    # Their decompressors cannot bound the size of one read.
    "bzip2": lambda: with_compression(zipfile.ZIP_BZIP2),
    "LZMA": lambda: with_compression(zipfile.ZIP_LZMA),
    "entries that overlap": with_overlapping_entries,
    "encrypted": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 8, b"\x01\0"),
    "wrong checksum": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 16, b"evil"),
    "directory that states more bytes": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 24, uint32(9999)),
    "directory that states fewer bytes": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 24, uint32(5)),
    "directory that states fewer packed bytes": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 20, uint32(5)),
    "entry that points past the end": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 42, uint32(2**31)),
    "entry that points into another": lambda: with_bytes_replaced(zip_of(members()), ENTRY, 42, uint32(17)),
    "directory before the file's start": lambda: with_bytes_replaced(zip_of(members()), END, 16, uint32(2**31)),
    "local header of another name": lambda: with_bytes_replaced(zip_of(members()), LOCAL, 30, b"evil"),
    "a million entries": with_million_entries,
    "half a million entries in a small directory": with_small_directory,
    "a million entries, by a zip64 closing record": with_zip64_record,
    "truncated": lambda: zip_of(members())[:-100],
    "half": lambda: zip_of(members())[: len(zip_of(members())) // 2],
    "no end": lambda: zip_of(members())[:-22],
    "only an end": lambda: END + bytes(18),
    "empty": lambda: b"",
    "HTML": lambda: b"<html><body>404</body></html>",
    "tar with a symbolic link": lambda: tar_with_link(tarfile.SYMTYPE),
    "tar with a hard link": lambda: tar_with_link(tarfile.LNKTYPE),
    "tar with a device": lambda: tar_with_link(tarfile.CHRTYPE, "w"),
    "tar with a FIFO": lambda: tar_with_link(tarfile.FIFOTYPE, "w:xz"),
}


@contextlib.contextmanager
def small_omniglot(folder: Path) -> Iterator[Path]:
    """Make a data folder with valid archives of a few characters, which the data set accepts as the real ones."""
    place = folder / "data" / "omniglot"
    place.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for constant in ("BACKGROUND", "EVALUATION"):
            collection = getattr(omniglot, constant)
            (place / f"{collection.name}.zip").write_bytes(zip_of(members(collection.name)))
            small = dataclasses.replace(collection, characters=CLASSES)
            stack.enter_context(unittest.mock.patch.object(omniglot, constant, small))
        caches = {"METAFORGE_DATA": str(folder / "data"), "METAFORGE_CACHE": str(folder / "cache")}
        stack.enter_context(unittest.mock.patch.dict(os.environ, caches))
        yield place / f"{TOP}.zip"


def inspect_omniglot() -> tuple[int, str]:
    """Return exit code and output of `metaforge data inspect omniglot`; the code is -1 if an exception escapes."""
    result = CliRunner().invoke(app, ["data", "inspect", "omniglot"])
    escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (-1 if escaped else result.exit_code), result.output


def paths_below(folder: Path) -> set[str]:
    """Return the relative paths of everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def read_whole(path: Path) -> None:
    """Read every member of an archive."""
    tree = ZipTree(path)
    for name in tree.names:
        tree.read(name)


def refusal_of(folder: Path, path: Path, data: bytes) -> tuple[str, float]:
    """Return what is wrong with how an archive is refused, or "", and the longer time of reading it and the command."""
    path.write_bytes(data)
    before = paths_below(folder)
    start = time.perf_counter()
    try:
        read_whole(path)
    except DataError as error:
        fault = "" if str(path) in str(error) and error.remedy else f"not named: {error}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    else:
        fault = "it was accepted"
    middle = time.perf_counter()
    code, output = inspect_omniglot()
    times = (middle - start, time.perf_counter() - middle)
    if code != 3 or "Traceback" in output or "remedy" not in output:
        fault = fault or f"the command ends with {code}: {output[:200]}"
    if new_files := paths_below(folder) - before:
        fault = fault or f"written: {sorted(new_files)}"
    return fault, max(times)


@row(
    11,
    "hostile archives",
    goal="0 bytes outside the target, 0 incomplete data sets, at most 1 s each to refuse, exit code 3",
)
def hostile_archives(workspace: Workspace, *, count: int = len(CASES), fuzzed: int = 1000, seed: int = 11) -> Measured:
    """Give Omniglot hostile archives, and randomly damaged ones, which must be refused or read correctly."""
    names, faults, slowest, wrong = list(CASES)[:count], dict[str, str](), 0.0, 0
    with small_omniglot(workspace.folder) as path:
        good, (code, output) = path.read_bytes(), inspect_omniglot()
        if code != 0:
            return Measured(False, f"the valid archive is refused: {output}")
        for path_in_cache in (workspace.folder / "cache").iterdir():
            path_in_cache.unlink()
        tried = 0
        for index in workspace.indices(len(names)):
            fault, seconds = refusal_of(workspace.folder, path, CASES[names[index]]())
            tried, slowest = tried + 1, max(slowest, seconds)
            if fault:
                faults[names[index]] = fault
        generator, content = np.random.default_rng(seed), dict(members())
        for _ in workspace.indices(fuzzed):
            wrong += _misread(path, _with_random_bytes(good, generator), content, faults)
    return Measured(
        tried == count and not faults and not wrong and slowest <= 1,
        f"{tried - len(faults)} of {tried} refused with exit code 3, nothing written, {slowest:.2f} s at most;"
        f" {fuzzed} damaged archives refused or read correctly",
        {"tried": tried, "slowest_seconds": round(slowest, 3), "fuzzed": fuzzed, "faults": faults},
    )


def _with_random_bytes(data: bytes, generator: np.random.Generator) -> bytes:
    """Return an archive with one to three bytes changed, mostly in its directory."""
    damaged = bytearray(data)
    start = data.index(ENTRY) if generator.random() < 0.7 else 0
    for _ in range(int(generator.integers(1, 4))):
        damaged[int(generator.integers(start, len(damaged)))] = int(generator.integers(256))
    return bytes(damaged)


def _misread(path: Path, data: bytes, content: dict[str | zipfile.ZipInfo, bytes], faults: dict[str, str]) -> bool:
    """Return whether a damaged archive was neither refused nor read correctly."""
    path.write_bytes(data)
    try:
        tree = ZipTree(path)
        wrong = [name for name in tree.names if tree.read(name) != content.get(name, tree.read(name))]
    except DataError:
        return False
    except Exception as error:
        faults[f"damaged: {type(error).__name__}"] = str(error)
        return True
    return bool(wrong)
