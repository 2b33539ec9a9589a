"""Files of lines: a new run begins one, a resumed run continues it after its last saved step."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaforge.errors import ConfigError, StorageError
from metaforge.system.line_files import append_lines, begin_lines, kept_lines, write_lines


def step_of(line: str) -> int:
    return int(line.split(",")[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with a heading and three steps."""
    path = tmp_path / "losses.csv"
    write_lines(path, ["step,loss", "1,0.9", "2,0.7", "3,0.6"])
    return path


def test_a_new_run_begins_with_the_heading_alone(path: Path) -> None:
    begin_lines(path, start=0, step_of=step_of, heading=["step,loss"])
    assert path.read_text() == "step,loss\n"
    begin_lines(path, start=0, step_of=step_of)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("start", "steps"), [(1, ["1,0.9"]), (2, ["1,0.9", "2,0.7"]), (9, ["1,0.9", "2,0.7", "3,0.6"])]
)
def test_a_resumed_run_keeps_the_lines_up_to_its_step(path: Path, start: int, steps: list[str]) -> None:
    begin_lines(path, start=start, step_of=step_of, heading=["step,loss"])
    assert path.read_text().splitlines() == ["step,loss", *steps]


def test_a_resumed_run_without_a_file_begins_one(tmp_path: Path) -> None:
    begin_lines(tmp_path / "new.csv", start=5, step_of=step_of, heading=["step,loss"])
    assert (tmp_path / "new.csv").read_text() == "step,loss\n"


def test_an_incomplete_last_line_is_dropped(path: Path) -> None:
    with path.open("a") as file:
        file.write("4,0.")
    begin_lines(path, start=4, step_of=step_of, heading=["step,loss"])
    assert path.read_text().splitlines()[-1] == "3,0.6"


@pytest.mark.parametrize(
    ("line", "message"), [(b"x,0.9", "line 3: ValueError: invalid literal"), (b"\xff", "line 3: UnicodeDecodeError")]
)
def test_an_unreadable_line_before_the_step_is_refused(path: Path, line: bytes, message: str) -> None:
    path.write_bytes(b"step,loss\n1,0.9\n" + line + b"\n3,0.6\n")
    with pytest.raises(ConfigError, match=rf"losses\.csv cannot be continued: {message}") as caught:
        begin_lines(path, start=3, step_of=step_of, heading=["step,loss"])
    assert caught.value.where == str(path)
    assert path.read_bytes().endswith(line + b"\n3,0.6\n")


def test_an_unreadable_line_after_the_step_is_ignored(path: Path) -> None:
    path.write_bytes(b"1,0.9\n2,0.7\nx\n3,0.6\n")
    assert kept_lines(path, 2, step_of) == (["1,0.9", "2,0.7"], [])
    kept, damaged = kept_lines(path, 3, step_of)
    assert kept == ["1,0.9", "2,0.7", "3,0.6"]
    assert len(damaged) == 1


def test_another_heading_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="it does not begin with step,score"):
        begin_lines(path, start=1, step_of=step_of, heading=["step,score"])


def test_lines_are_appended_and_the_file_is_created(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    append_lines(path, ["a", "ä"])
    append_lines(path, [])
    append_lines(path, ["b"])
    assert path.read_text("utf-8") == "a\nä\nb\n"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Cannot write .*No such file or directory\.\n"):
        append_lines(tmp_path / "missing" / "lines.txt", ["a"])
