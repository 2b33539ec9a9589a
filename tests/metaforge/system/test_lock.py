"""One process writes a run: the holder of the lock is named, and the lock of a dead process is taken over."""

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

# Takes the lock, prints a line, and waits until stdin is closed.
HOLDER = "import sys; from pathlib import Path; from metaforge.system.lock import RunLock;"
HOLDER += " lock = RunLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_the_holder_is_named_and_frees_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    record = json.loads((tmp_path / "run.lock").read_text())
    assert (record["pid"], record["host"]) == (os.getpid(), platform.node())
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on {platform.node()} since") as caught:
        RunLock(tmp_path)
    assert caught.value.exit_code == 7
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    line = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"process {holder.pid} on"):
            RunLock(tmp_path)
        holder.kill()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == holder.pid
    RunLock(tmp_path).release()


def test_a_holder_on_another_machine_keeps_the_lock(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "noon"}))
    with pytest.raises(RunLockedError, match="process 1 on elsewhere since noon") as caught:
        RunLock(tmp_path)
    assert "remove run.lock" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1', "[" * 100_000])
def test_an_invalid_record_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.lock").write_text(content)
    RunLock(tmp_path).release()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(precious)
    with pytest.raises(StorageError, match=r"run\.lock"):
        RunLock(tmp_path / "run")
    assert precious.read_text() == "precious"


def test_a_lock_in_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        RunLock(tmp_path / "gone")


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `flock` fail as on a network file system without locks."""

    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("metaforge.system.lock.fcntl.flock", refused)


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_record_of_a_living_process_holds(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on {platform.node()} since"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"pid": 2**70}, {"boot": "before the last start"}])
def test_without_flock_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, change: dict[str, object]) -> None:
    lock = RunLock(tmp_path)
    record = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps(record | change))
    RunLock(tmp_path).release()
    lock.release()


def test_any_other_error_of_flock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("metaforge.system.lock.fcntl.flock", refused)
    with pytest.raises(StorageError, match="Input/output error"):
        RunLock(tmp_path)
