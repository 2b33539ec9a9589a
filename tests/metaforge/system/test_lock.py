"""One writer per run: the holder is named, and a dead one's lock is recovered."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from metaforge.errors import RunLockedError, StorageError
from metaforge.system.lock import RunLock

# Takes the lock, says so, and waits for its end.
HOLDER = "import sys; from pathlib import Path; from metaforge.system.lock import RunLock;"
HOLDER += " lock = RunLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_the_holder_is_named_and_gives_it_back(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    told = json.loads((tmp_path / "run.lock").read_text())
    assert (told["pid"], told["host"]) == (os.getpid(), platform.node())
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on {platform.node()} since") as caught:
        RunLock(tmp_path)
    assert caught.value.exit_code == 7
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_the_lock_of_a_killed_process_is_recovered(tmp_path: Path) -> None:
    line = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"process {holder.pid} on"):
            RunLock(tmp_path)
        holder.kill()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == holder.pid
    RunLock(tmp_path).release()


def test_a_holder_on_another_machine_is_believed(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "noon"}))
    with pytest.raises(RunLockedError, match="process 1 on elsewhere since noon") as caught:
        RunLock(tmp_path)
    assert "remove run.lock" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1'])
def test_a_record_that_says_nothing_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.lock").write_text(content)
    RunLock(tmp_path).release()


def test_a_lock_is_never_taken_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(precious)
    with pytest.raises(StorageError, match=r"run\.lock"):
        RunLock(tmp_path / "run")
    assert precious.read_text() == "precious"


def test_where_there_is_no_folder_there_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        RunLock(tmp_path / "gone")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the system's locks away, as some file systems of several machines do."""

    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("metaforge.system.lock.fcntl.flock", refused)


@pytest.mark.usefixtures("without_locks")
def test_without_the_system_s_locks_the_record_of_a_process_that_is_there_holds(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on {platform.node()} since"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"pid": 2**70}, {"boot": "before the last start"}])
def test_without_the_system_s_locks_a_dead_holder_s_is_recovered(tmp_path: Path, change: dict[str, object]) -> None:
    lock = RunLock(tmp_path)
    record = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps(record | change))
    RunLock(tmp_path).release()
    lock.release()


def test_a_lock_that_fails_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("metaforge.system.lock.fcntl.flock", refused)
    with pytest.raises(StorageError, match="Input/output error"):
        RunLock(tmp_path)
