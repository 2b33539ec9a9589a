"""Files are written whole or not at all, and refusals are sentences with figures."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from metaforge.errors import StorageError
from metaforge.system.files import (
    fsync,
    make_folder,
    remove_leftovers,
    require_space,
    require_writable,
    write_atomically,
    write_errors,
    write_json,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for content in ("old", "new ä"):
        write_atomically(path, content)
    assert path.read_text("utf-8") == "new ä"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
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
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(f"fsync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        fsync(descriptor)

    def noted_replace(before: Path, after: Path) -> None:
        done.append("replace")
        replace(before, after)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(tmp_path / "file.txt", "content")
    assert done == ["fsync file", "replace", "fsync folder"]


def test_json_has_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_room_is_asked_for_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path, 1)
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    require_space(tmp_path, 30_000)
    with pytest.raises(StorageError, match=r"125,536 bytes are needed\. 100,000 bytes are free"):
        require_space(tmp_path, 60_000)


def test_what_a_system_refuses_is_told_even_where_the_folder_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "run"
    with (
        pytest.raises(
            StorageError, match=r"Cannot write .*No such file.* 4,096 bytes are needed\. [\d,]+ bytes are free"
        ),
        write_errors(gone),
    ):
        gone.open("x")
    with pytest.raises(KeyError), write_errors(gone):
        raise KeyError("not the system's")


def test_synced_takes_a_folder(tmp_path: Path) -> None:
    fsync(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync(tmp_path / "gone")


def test_what_interrupted_writes_have_left_is_swept_wherever_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "pictures" / "x.part"
    for folder in ("pictures/.a.png.1-ab.part", "ckpt/.step-0000001.1-ab.part/inner", ".x.part"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".status.json.1-ab.part", "pictures/.b.png.1-ab.part", ".x.part/content", "pictures/x.part"):
        (tmp_path / file).write_text("")
    remove_leftovers(tmp_path)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [kept]
    assert not list(tmp_path.rglob(".*"))


def test_a_new_folder_and_those_above_it_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []
    monkeypatch.setattr("metaforge.system.files.fsync", done.append)
    assert make_folder(tmp_path / "runs" / "a")
    assert set(done) == {tmp_path, tmp_path / "runs"}
    assert not make_folder(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    assert not make_folder(tmp_path / "file")
    with pytest.raises(StorageError):
        make_folder(tmp_path / "file" / "run")


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="bytes are free"):
        require_writable(tmp_path / "gone")
