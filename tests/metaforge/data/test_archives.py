"""Tests of untrusted zip archives: a malicious or damaged one is refused before any member is read."""

from __future__ import annotations

import stat
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from metaforge.data.archives import Limits, open_zip, read_member
from metaforge.errors import DataError


def packed(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], form: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", form) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def nul_name() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = "a.png\0.exe"
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil", b"x")], "leave the folder"),
        ([("a/../../evil", b"x")], "leave the folder"),
        ([("/etc/evil", b"x")], "leave the folder"),
        ([("C:/evil", b"x")], "leave the folder"),
        ([("a\\..\\evil", b"x")], "leave the folder"),
        ([(nul_name(), b"x")], "leave the folder"),
        ([(special("link", stat.S_IFLNK | 0o777), b"/etc/passwd")], "link or a device"),
        ([(special("device", stat.S_IFCHR | 0o777), b"")], "link or a device"),
        ([("a", b"x"), ("a", b"y")], "twice"),
        ([("a/b", b"x"), ("A/B", b"y")], "twice"),
        ([("zeros", bytes(3 * 2**20))], "claims to unpack"),
        ([(f"{i}", b"") for i in range(101)], "101 members"),
        ([(f"{i}", bytes(2**19)) for i in range(20)], "unpacks to"),
    ],
)
def test_hostile_listings_are_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", members)
    with pytest.raises(DataError, match=message) as caught:
        open_zip(path, Limits(members=100, total_bytes=2**23))
    assert caught.value.where == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_of_too_many_files_can_be_replaced_by_a_folder(tmp_path: Path) -> None:
    path = packed(tmp_path / "large.zip", [(f"{number}", b"") for number in range(4)])
    with pytest.raises(DataError, match="more than 3") as caught:
        open_zip(path, Limits(members=3))
    assert "folder" in caught.value.remedy


def test_folders_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", [("x/A/1.txt", b"1"), ("X/a/2.txt", b"2")])
    with pytest.raises(DataError, match="is 'x/A' elsewhere"):
        open_zip(path)
    packed(path, [("x/", b""), ("x/A/1.txt", b"1"), ("x/A/", b""), ("x/b/2.txt", b"2")])
    open_zip(path).close()


def test_a_second_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "bad.zip", [("ok.png", b"x")])
    listed = zipfile.ZipFile.infolist

    def infolist(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        # Newer versions of Python take the name from the extra field 0x7075 where there is one.
        members = listed(archive)
        members[0].filename = "../../evil.png"
        return members

    monkeypatch.setattr(zipfile.ZipFile, "infolist", infolist)
    with pytest.raises(DataError, match="has a second name"):
        open_zip(path)


def test_an_overstated_compressed_size_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", [("a", b"x"), ("zeros", bytes(50 * 2**20))])
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 20
    data[place : place + 4] = (2**20).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="reach into the directory"):
        open_zip(path)


def test_a_member_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    with open_zip(packed(tmp_path / "x.zip", [("a", bytes(9))])) as archive:
        assert len(read_member(archive, "a", max_bytes=9)) == 9
        with pytest.raises(DataError, match="9 bytes, more than 8"):
            read_member(archive, "a", max_bytes=8)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.zip", [("a", b"secret")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        open_zip(path)


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    good = packed(tmp_path / "good.zip", [("a/b.txt", b"hello" * 100), ("c", b"x")], zipfile.ZIP_STORED)
    data = good.read_bytes()
    bad = tmp_path / "bad.zip"
    for content in (b"", b"<html>", data[:-30], data[: len(data) // 2], data[100:]):
        bad.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_member(open_zip(bad), "a/b.txt")
        assert str(bad) in caught.value.where
    bad.write_bytes(data.replace(b"hello", b"jello", 1))
    with open_zip(bad) as archive, pytest.raises(DataError, match=r"'a/b\.txt' is damaged"):
        read_member(archive, "a/b.txt")
    with open_zip(good) as archive:
        assert read_member(archive, "a/b.txt") == b"hello" * 100
        with pytest.raises(DataError, match="'other' is damaged"):
            read_member(archive, "other")
    with pytest.raises(DataError, match="cannot be read"):
        open_zip(tmp_path / "none.zip")


def test_a_huge_listing_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    entry = bytes(46)
    directory = 40 * 2**20
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff\xff\xff" + directory.to_bytes(4, "little") + bytes(6)
    path.write_bytes(entry * (directory // 46) + end)
    start = time.perf_counter()
    with pytest.raises(DataError, match="too large"):
        open_zip(path)
    assert time.perf_counter() - start < 1
