"""Archives and downloads: nothing hostile is opened, nothing partial gets the final name."""

from __future__ import annotations

import hashlib
import io
import stat
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from metaforge.data.archives import Limits, open_zip, read_member
from metaforge.data.downloads import Opener, download, open_https
from metaforge.errors import DataError, StorageError


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
    ("members", "says"),
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
def test_hostile_listings_are_refused(members: list[tuple[str, bytes]], says: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", members)
    with pytest.raises(DataError, match=says) as caught:
        open_zip(path, Limits(members=100, total_bytes=2**23))
    assert caught.value.where == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", [("x/A/1.txt", b"1"), ("X/a/2.txt", b"2")])
    with pytest.raises(DataError, match="is 'x/A' elsewhere"):
        open_zip(path)
    packed(path, [("x/", b""), ("x/A/1.txt", b"1"), ("x/A/", b""), ("x/b/2.txt", b"2")])
    open_zip(path).close()


def test_a_second_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "bad.zip", [("ok.png", b"x")])
    listed = zipfile.ZipFile.infolist

    def newer(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        # Newer versions of Python take the name from the extra field 0x7075 where there is one.
        found = listed(archive)
        found[0].filename = "../../evil.png"
        return found

    monkeypatch.setattr(zipfile.ZipFile, "infolist", newer)
    with pytest.raises(DataError, match="has a second name"):
        open_zip(path)


def test_a_lie_about_the_packed_size_is_seen(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", [("a", b"x"), ("zeros", bytes(50 * 2**20))])
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 20
    data[place : place + 4] = (2**20).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="reach into the directory"):
        open_zip(path)


def test_no_more_of_a_member_is_read_than_asked_for(tmp_path: Path) -> None:
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


BODY = bytes(range(256)) * 4096
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
URL = "https://example.org/data.zip"


class Answer:
    """A stand-in for an HTTP response, which may break off."""

    def __init__(self, body: bytes, length: str | None = None, fails: type[Exception] | None = None) -> None:
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = length
        self._file, self._fails = io.BytesIO(body), fails

    def read(self, size: int, /) -> bytes:
        block = self._file.read(size)
        if not block and self._fails is not None:
            raise self._fails("reset by peer")
        return block


def answering(answer: Answer) -> Opener:
    @contextmanager
    def opener(url: str) -> Iterator[Answer]:
        assert url == URL
        yield answer

    return opener


def test_a_download_appears_complete_and_reports_progress(tmp_path: Path) -> None:
    target, seen = tmp_path / "new" / "data.zip", []

    def check(path: Path) -> None:
        assert path.read_bytes() == BODY
        assert not target.exists()

    result = download(
        URL,
        target,
        md5=MD5,
        max_bytes=2**21,
        check=check,
        progress=lambda *step: seen.append(step),
        opener=answering(Answer(BODY, length=str(len(BODY)))),
    )
    assert result == target
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]
    assert seen[-1] == ("data.zip", len(BODY), len(BODY))
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def refuse(path: Path) -> None:
    raise DataError("wrong pixels", where=str(path))


@pytest.mark.parametrize(
    ("answer", "check", "says"),
    [
        (Answer(BODY[:1000]), None, "MD5"),
        (Answer(b"<html>rate limited</html>"), None, "MD5"),
        (Answer(BODY + BODY + BODY), None, "longer than"),
        (Answer(BODY, length=str(2**40)), None, "longer than"),
        (Answer(BODY[:1000], fails=ConnectionResetError), None, "reset by peer"),
        (Answer(BODY[:1000], fails=TimeoutError), None, "download failed"),
        (Answer(BODY), refuse, "wrong pixels"),
    ],
)
def test_a_bad_download_leaves_what_was_there(
    answer: Answer, check: Callable[[Path], None] | None, says: str, tmp_path: Path
) -> None:
    target = tmp_path / "data.zip"
    for before in ({}, {"data.zip": b"old"}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            download(URL, target, md5=MD5, max_bytes=2**21, check=check, opener=answering(answer))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        answer._file.seek(0)


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(URL, tmp_path / "x.zip", md5=MD5, max_bytes=2**21, progress=interrupt, opener=answering(Answer(BODY)))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot be written.* bytes are needed.* bytes are free"):
        download(URL, tmp_path / "file" / "x.zip", md5=MD5, max_bytes=2**21, opener=answering(Answer(BODY)))


@pytest.mark.parametrize("url", ["http://example.org/x.zip", "file:///etc/passwd", "ftp://x/y", "https:///x", "x.zip"])
def test_only_https_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only https"):
        download(url, tmp_path / "x.zip", md5=MD5, max_bytes=1)
    with pytest.raises(DataError, match="only https"):
        open_https(url)


def test_a_redirection_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[type[urllib.request.HTTPRedirectHandler]] = []

    class Director:
        def open(self, request: urllib.request.Request, timeout: float) -> None:
            redirect = handlers[0]().redirect_request
            assert redirect(request, io.BytesIO(), 302, "Found", Message(), "https://other.org/x") is not None
            redirect(request, io.BytesIO(), 302, "Found", Message(), "http://other.org/x")

    def build(handler: type[urllib.request.HTTPRedirectHandler]) -> Director:
        handlers.append(handler)
        return Director()

    monkeypatch.setattr(urllib.request, "build_opener", build)
    with pytest.raises(DataError, match="only https"):
        open_https(URL)
