"""Row 11: archives that want to write elsewhere, to exhaust the machine or to mean two things at once."""

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
from tests.reliability.rows import Measured, Room, row

TOP = "images_background"
CLASSES = 6
Members = list[tuple[str | zipfile.ZipInfo, bytes]]


def members(top: str = TOP) -> Members:
    """Return what a small archive of characters holds."""
    found: Members = []
    for character in range(1, CLASSES + 1):
        for drawer in range(1, 21):
            file = io.BytesIO()
            pixels = np.random.default_rng(100 * character + drawer).integers(0, 2, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels * 255).save(file, "PNG")
            found.append((f"{top}/Runes/character{character:02d}/{character:04d}_{drawer:02d}.png", file.getvalue()))
    return found


def packed(content: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive, whatever its names."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in content:
                archive.writestr(name, data, compress_type=method)
    return file.getvalue()


def named(name: str, *, mode: int = 0, data: bytes = b"x") -> bytes:
    """Return a sound archive with one more member, of this very name and kind."""
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr, info.create_system = name, mode << 16, 3
    return packed([*members(), (info, data)])


def patched(data: bytes, signature: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    """Return an archive with some bytes after its last (or first) such record replaced."""
    place = (data.rindex if last else data.index)(signature) + offset
    return data[:place] + value + data[place + len(value) :]


ENTRY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def overlapping() -> bytes:
    """Return an archive whose last two entries share the bytes of one member."""
    data = packed([*members(), ("a", bytes(10**5)), ("b", bytes(10**5))])
    second = data.rindex(ENTRY)
    first = data.rindex(ENTRY, 0, second)
    return data[: second + 42] + data[first + 42 : first + 46] + data[second + 46 :]


def hidden_bomb() -> bytes:
    """Return an archive whose directory says 100 bytes of a member that unpacks to hundreds of millions."""
    data = packed([*members()[:-1], (members()[-1][0], bytes(4 * 10**8))])
    data = patched(data, ENTRY, 24, number(100))
    return patched(data, LOCAL, 22, number(100))


def million() -> bytes:
    """Return an archive whose directory lists a million members."""
    entry = ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    return b"".join([entry * 10**6, END, bytes(4), b"\xff\xff\xff\xff", number(len(entry) * 10**6), bytes(6)])


def many_small() -> bytes:
    """Return an archive of 500,000 members whose directory has the size of 60,000."""
    entry = ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    return b"".join([entry * 500_000, END, bytes(4), b"\1\0\1\0", number(len(entry) * 500_000), bytes(6)])


def wide() -> bytes:
    """Return an archive whose second closing record (zip64) overrides what the first one says."""
    directory = (ENTRY + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a") * 10**6
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(directory), 1)
    return b"".join([directory, record, locator, END, bytes(4), b"\1\0\1\0", number(47), bytes(6)])


def tar(kind: bytes, mode: str = "w:gz") -> bytes:
    """Return a tar archive with one link or device that points elsewhere."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "../../../etc/passwd"
        archive.addfile(info)
    return file.getvalue()


def method(value: int) -> bytes:
    """Return an archive whose last member is packed by another method."""
    return packed([*members(), ("x.txt", bytes(10**6))], value)


CASES: dict[str, Callable[[], bytes]] = {
    **{
        f"traversal {name!r}": partial(named, name)
        for name in ("../evil", "../../evil", "a/../../evil", f"{TOP}/../evil", "a/..", "./../evil", "..")
    },
    **{
        what: partial(named, name)
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
        what: partial(named, "special", mode=mode, data=b"/etc/passwd")
        for what, mode in {
            "symbolic link": stat.S_IFLNK | 0o777,
            "character device": stat.S_IFCHR | 0o666,
            "block device": stat.S_IFBLK | 0o666,
            "FIFO": stat.S_IFIFO | 0o666,
            "socket": stat.S_IFSOCK | 0o666,
            "folder by its kind alone": stat.S_IFDIR | 0o755,
        }.items()
    },
    "empty name": lambda: named(""),
    "folder with content": lambda: named("folder/", data=b"content"),
    "duplicates": lambda: packed([*members(), members()[0]]),
    "clash of case": lambda: packed([*members(), ("Ab", b"1"), ("aB", b"2")]),
    "clash of accents": lambda: packed([*members(), ("\u00e9", b"1"), ("e\u0301", b"2")]),
    "file and folder of one name": lambda: packed([*members(), ("a", b"1"), ("a/b", b"2")]),
    "folder and file of one name": lambda: packed([*members(), ("a/b", b"1"), ("a", b"2")]),
    "folders that clash in case": lambda: packed([*members(), ("x/A/1.txt", b"1"), ("X/a/2.txt", b"2")]),
    "ratio hidden by a lie about the packed size": lambda: patched(
        packed([*members()[:-1], (members()[-1][0], bytes(250 * 2**20))]), ENTRY, 20, number(3 * 2**20)
    ),
    "ratio of 1000": lambda: packed([*members(), ("zeros.png", bytes(3 * 2**20))]),
    "ratio hidden from the directory": hidden_bomb,
    "bzip2, whose reads have no bound": lambda: method(zipfile.ZIP_BZIP2),
    "LZMA, whose reads have no bound": lambda: method(zipfile.ZIP_LZMA),
    "entries that overlap": overlapping,
    "encrypted": lambda: patched(packed(members()), ENTRY, 8, b"\x01\0"),
    "wrong checksum": lambda: patched(packed(members()), ENTRY, 16, b"evil"),
    "directory that says more bytes": lambda: patched(packed(members()), ENTRY, 24, number(9999)),
    "directory that says fewer bytes": lambda: patched(packed(members()), ENTRY, 24, number(5)),
    "directory that says fewer packed bytes": lambda: patched(packed(members()), ENTRY, 20, number(5)),
    "entry that points past the end": lambda: patched(packed(members()), ENTRY, 42, number(2**31)),
    "entry that points into another": lambda: patched(packed(members()), ENTRY, 42, number(17)),
    "directory before the file's start": lambda: patched(packed(members()), END, 16, number(2**31)),
    "local header of another name": lambda: patched(packed(members()), LOCAL, 30, b"evil"),
    "a million entries": million,
    "half a million entries in a small directory": many_small,
    "a million entries, by a second closing record": wide,
    "truncated": lambda: packed(members())[:-100],
    "half": lambda: packed(members())[: len(packed(members())) // 2],
    "no end": lambda: packed(members())[:-22],
    "only an end": lambda: END + bytes(18),
    "empty": lambda: b"",
    "HTML": lambda: b"<html><body>404</body></html>",
    "tar with a symbolic link": lambda: tar(tarfile.SYMTYPE),
    "tar with a hard link": lambda: tar(tarfile.LNKTYPE),
    "tar with a device": lambda: tar(tarfile.CHRTYPE, "w"),
    "tar with a FIFO": lambda: tar(tarfile.FIFOTYPE, "w:xz"),
}


@contextlib.contextmanager
def small_omniglot(folder: Path) -> Iterator[Path]:
    """Make a data folder with sound archives of a few characters, which the data set takes for the real ones."""
    place = folder / "data" / "omniglot"
    place.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for constant in ("BACKGROUND", "EVALUATION"):
            collection = getattr(omniglot, constant)
            (place / f"{collection.name}.zip").write_bytes(packed(members(collection.name)))
            small = dataclasses.replace(collection, characters=CLASSES)
            stack.enter_context(unittest.mock.patch.object(omniglot, constant, small))
        caches = {"METAFORGE_DATA": str(folder / "data"), "METAFORGE_CACHE": str(folder / "cache")}
        stack.enter_context(unittest.mock.patch.dict(os.environ, caches))
        yield place / f"{TOP}.zip"


def inspected() -> tuple[int, str]:
    """Return the exit code of `metaforge data inspect omniglot` and what it says; -1 for an exception that escapes."""
    result = CliRunner().invoke(app, ["data", "inspect", "omniglot"])
    escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (-1 if escaped else result.exit_code), result.output


def existing(folder: Path) -> set[str]:
    """Return everything that there is below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def read_whole(path: Path) -> None:
    """Read everything that an archive holds."""
    tree = ZipTree(path)
    for name in tree.names:
        tree.read(name)


def attempt(folder: Path, path: Path, data: bytes) -> tuple[str, float]:
    """Return what is wrong with how an archive is refused ("" if nothing), and the longer of the two times it took."""
    path.write_bytes(data)
    before = existing(folder)
    begun = time.perf_counter()
    try:
        read_whole(path)
    except DataError as error:
        fault = "" if str(path) in str(error) and error.remedy else f"not named: {error}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    else:
        fault = "it was read"
    middle = time.perf_counter()
    code, said = inspected()
    times = (middle - begun, time.perf_counter() - middle)
    if code != 3 or "Traceback" in said or "remedy" not in said:
        fault = fault or f"the command ends with {code}: {said[:200]}"
    if strange := existing(folder) - before:
        fault = fault or f"written: {sorted(strange)}"
    return fault, max(times)


@row(
    11,
    "hostile archives",
    goal="0 bytes outside the target, 0 half-made data sets, at most 1 s each to refuse, exit code 3",
)
def hostile_archives(room: Room, *, count: int = len(CASES), fuzzed: int = 1000, seed: int = 11) -> Measured:
    """Give the data set hostile archives, and a thousand damaged ones that may only be refused or read right."""
    names, faults, slowest, wrong = list(CASES)[:count], dict[str, str](), 0.0, 0
    with small_omniglot(room.folder) as path:
        good, (code, said) = path.read_bytes(), inspected()
        if code != 0:
            return Measured(False, f"the sound archive is refused: {said}")
        for path_in_cache in (room.folder / "cache").iterdir():
            path_in_cache.unlink()
        tried = 0
        for index in room.counted(len(names)):
            fault, seconds = attempt(room.folder, path, CASES[names[index]]())
            tried, slowest = tried + 1, max(slowest, seconds)
            if fault:
                faults[names[index]] = fault
        draw, content = np.random.default_rng(seed), dict(members())
        for _ in room.counted(fuzzed):
            wrong += _misread(path, _damaged(good, draw), content, faults)
    return Measured(
        tried == count and not faults and not wrong and slowest <= 1,
        f"{tried - len(faults)} of {tried} refused with exit code 3, nothing written, {slowest:.2f} s at most;"
        f" {fuzzed} damaged ones refused or read right",
        {"tried": tried, "slowest_seconds": round(slowest, 3), "fuzzed": fuzzed, "faults": faults},
    )


def _damaged(data: bytes, draw: np.random.Generator) -> bytes:
    """Return an archive with a few bytes changed, mostly in its directory."""
    made = bytearray(data)
    start = data.index(ENTRY) if draw.random() < 0.7 else 0
    for _ in range(int(draw.integers(1, 4))):
        made[int(draw.integers(start, len(made)))] = int(draw.integers(256))
    return bytes(made)


def _misread(path: Path, data: bytes, content: dict[str | zipfile.ZipInfo, bytes], faults: dict[str, str]) -> bool:
    """Return whether a damaged archive was neither refused nor read with right bytes under its names."""
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
