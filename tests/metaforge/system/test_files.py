"""Files are written atomically and durably, and write errors name the bytes needed and free."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest

from metaforge.errors import StorageError
from metaforge.system.files import (
    free_space,
    fsync,
    make_folder,
    remove,
    remove_leftovers,
    require_space,
    require_writable,
    write_atomically,
    write_errors,
    write_json,
)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for content in ("old", "new ä"):
        write_atomically(path, content)
    assert path.read_text("utf-8") == "new ä"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(os, operation, full)
    with pytest.raises(StorageError, match=r"No space left.* 9 bytes are needed\. [\d,]+ bytes are free") as caught:
        write_atomically(path, "new words")
    assert caught.value.exit_code == 8
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_content_is_on_the_disk_before_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"fsync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        fsync(descriptor)

    def recorded_replace(before: Path, after: Path) -> None:
        calls.append("replace")
        replace(before, after)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(tmp_path / "file.txt", "content")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_json_is_written_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_too_little_free_space_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path, 1)
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    require_space(tmp_path, 30_000)
    with pytest.raises(StorageError, match=r"125,536 bytes are needed\. 100,000 bytes are free"):
        require_space(tmp_path, 60_000)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_error_for_lack_of_space_names_the_free_space_even_if_the_folder_is_missing(
    tmp_path: Path, number: int
) -> None:
    gone = tmp_path / "gone" / "run"
    message = r"Cannot write .* 4,096 bytes are needed\. [\d,]+ bytes are free\.$"
    with pytest.raises(StorageError) as caught, write_errors(gone):
        raise OSError(number, os.strerror(number))
    assert re.match(message, caught.value.what)
    assert caught.value.remedy == "free space, or choose another folder with --out"


def test_another_write_error_does_not_name_the_free_space(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "run"
    with pytest.raises(StorageError) as caught, write_errors(gone):
        gone.open("x")
    assert caught.value.what == f"Cannot write {gone}: No such file or directory."
    assert caught.value.remedy.startswith("check the path and its permissions")
    with pytest.raises(KeyError), write_errors(gone):
        raise KeyError("not a write error")


def test_a_folder_can_be_synced(tmp_path: Path) -> None:
    fsync(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync(tmp_path / "gone")


def test_leftovers_of_interrupted_writes_are_removed_at_any_depth(tmp_path: Path) -> None:
    kept = tmp_path / "pictures" / "x.part"
    for folder in ("pictures/.a.png.1-ab.part", "ckpt/.step-0000001.1-ab.part/inner", ".x.part"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".status.json.1-ab.part", "pictures/.b.png.1-ab.part", ".x.part/content", "pictures/x.part"):
        (tmp_path / file).write_text("")
    remove_leftovers(tmp_path)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [kept]
    assert not list(tmp_path.rglob(".*"))


def test_a_new_folder_and_its_parents_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("metaforge.system.files.fsync", synced.append)
    assert make_folder(tmp_path / "runs" / "a")
    assert set(synced) == {tmp_path, tmp_path / "runs"}
    assert not make_folder(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    assert not make_folder(tmp_path / "file")
    with pytest.raises(StorageError):
        make_folder(tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=r"Cannot write .*No such file or directory\.\n"):
        require_writable(tmp_path / "gone")


def test_files_folders_and_links_are_removed(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder" / "file").exists()
    remove(tmp_path / "folder" / "file")
    remove(tmp_path / "folder")
    remove(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_the_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return type("Usage", (), {"free": 12_345})

    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", disk_usage)
    assert free_space(tmp_path / "missing" / "file") == " 12,345 bytes are free."
    assert asked == [tmp_path]


def test_free_space_that_is_not_known_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", refused)
    assert free_space(tmp_path) == ""
