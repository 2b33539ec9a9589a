"""Tests of downloads: https only, and a file gets its final name only when it is complete and verified."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from metaforge.data.downloads import Opener, download, open_https
from metaforge.errors import DataError, StorageError

BODY = bytes(range(256)) * 4096
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
URL = "https://example.org/data.zip"


class Response:
    """A stand-in for an HTTP response, whose body may end in an exception."""

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


def opener_of(response: Response) -> Opener:
    @contextmanager
    def opener(url: str) -> Iterator[Response]:
        assert url == URL
        yield response

    return opener


def test_a_download_appears_complete_and_reports_progress(tmp_path: Path) -> None:
    target, calls = tmp_path / "new" / "data.zip", []

    def check(path: Path) -> None:
        assert path.read_bytes() == BODY
        assert not target.exists()

    result = download(
        URL,
        target,
        md5=MD5,
        max_bytes=2**21,
        check=check,
        progress=lambda *step: calls.append(step),
        opener=opener_of(Response(BODY, length=str(len(BODY)))),
    )
    assert result == target
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]
    assert calls[-1] == ("data.zip", len(BODY), len(BODY))
    assert [step[1] for step in calls] == sorted(step[1] for step in calls)


def reject(path: Path) -> None:
    raise DataError("wrong pixels", where=str(path))


@pytest.mark.parametrize(
    ("response", "check", "message"),
    [
        (Response(BODY[:1000]), None, "MD5"),
        (Response(b"<html>rate limited</html>"), None, "MD5"),
        (Response(BODY + BODY + BODY), None, "longer than"),
        (Response(BODY, length=str(2**40)), None, "longer than"),
        (Response(BODY[:1000], fails=ConnectionResetError), None, "reset by peer"),
        (Response(BODY[:1000], fails=TimeoutError), None, "download failed"),
        (Response(BODY), reject, "wrong pixels"),
    ],
)
def test_a_failed_download_leaves_existing_files_unchanged(
    response: Response, check: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    target = tmp_path / "data.zip"
    for before in ({}, {"data.zip": b"old"}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            download(URL, target, md5=MD5, max_bytes=2**21, check=check, opener=opener_of(response))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        response._file.seek(0)


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(
            URL, tmp_path / "x.zip", md5=MD5, max_bytes=2**21, progress=interrupt, opener=opener_of(Response(BODY))
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_storage_error_with_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot be written.* bytes are needed.* bytes are free"):
        download(URL, tmp_path / "x.zip", md5=MD5, max_bytes=2**21, opener=opener_of(Response(BODY)))


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"the download cannot be written: (Not a directory|File exists)\.\n"):
        download(URL, tmp_path / "file" / "x.zip", md5=MD5, max_bytes=2**21, opener=opener_of(Response(BODY)))


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

    def build_opener(handler: type[urllib.request.HTTPRedirectHandler]) -> Director:
        handlers.append(handler)
        return Director()

    monkeypatch.setattr(urllib.request, "build_opener", build_opener)
    with pytest.raises(DataError, match="only https"):
        open_https(URL)
