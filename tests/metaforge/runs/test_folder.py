"""Creating a run folder: other files are never touched, and an interrupted creation is completed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from metaforge.errors import StorageError
from metaforge.runs import checkpoint
from metaforge.runs.folder import RunFolder

# Creates one folder for each operation on the storage, in a process that is killed there; prints how many there are.
KILLED = """
import os, sys
from pathlib import Path
from tests.reliability.faults import Faults
from metaforge.runs import checkpoint
from metaforge.runs.folder import RunFolder
for point in range(100):
    if not (child := os.fork()):
        Faults(point, "SIGKILL").install()
        path = Path(sys.argv[1], str(point))
        begin = lambda: checkpoint.save(path / "ckpt", 0, {}, {}, {"first": True})
        RunFolder.create(path, config="a = 1", command="train", environment={}, data={"a": 1}, begin=begin)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        sys.exit(print(point))
"""


def test_an_interrupted_creation_is_completed_by_the_next(tmp_path: Path) -> None:
    line = [sys.executable, "-c", KILLED, str(tmp_path)]
    points = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert points > 12
    cut_short = 0
    for point in range(points):
        path = tmp_path / str(point)
        if (path / "config.toml").is_file():
            with pytest.raises(StorageError, match="already exists"):
                RunFolder.create(path, config="b = 2", command="again", environment={})
            continue
        cut_short += path.is_dir()
        RunFolder.create(path, config="b = 2", command="again", environment={}, data={"b": 2}).close()
        assert (path / "config.toml").read_text() == "b = 2"
        names = {"run.lock", "pictures", "metrics.jsonl", "command.txt", "env.json", "data.json", "config.toml"}
        assert {one.name for one in path.iterdir()} == names
    assert cut_short > 10


@pytest.mark.parametrize("name", ["mine.txt", "command.txt", "pictures/cat.png"])
def test_a_folder_with_other_files_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(StorageError, match="already exists"):
        RunFolder.create(tmp_path, config="", command="", environment={})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_link_or_a_file_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        with pytest.raises(StorageError, match="already exists"):
            RunFolder.create(tmp_path / name, config="", command="", environment={})


def test_two_processes_cannot_create_the_same_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    with pytest.raises(StorageError, match="already exists"):
        RunFolder.create(tmp_path, config="", command="", environment={})
    first.close()
    RunFolder.create(tmp_path, config="", command="", environment={}).close()


def test_a_folder_named_like_a_temporary_one_does_not_prevent_a_resume(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", config="", command="", environment={}).close()
    (tmp_path / "run" / ".x.part").mkdir()
    (tmp_path / "run" / "pictures" / ".x.png.1-ab.part").write_text("")
    RunFolder.reopen(tmp_path / "run").close()
    assert not list((tmp_path / "run").rglob(".*.part"))


def test_what_a_run_must_not_lack_is_written_before_the_folder_is_that_of_a_run(tmp_path: Path) -> None:
    seen: list[bool] = []

    def begin() -> None:
        seen.append((tmp_path / "run" / "config.toml").exists())

    RunFolder.create(tmp_path / "run", config="", command="", environment={}, begin=begin).close()
    assert seen == [False]


def test_the_checkpoints_of_a_trained_run_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    checkpoint.save(tmp_path / "ckpt", 3, {}, {}, {})
    with pytest.raises(StorageError, match="already exists"):
        RunFolder.create(tmp_path, config="", command="", environment={})
    assert checkpoint.steps(tmp_path / "ckpt") == [3]
