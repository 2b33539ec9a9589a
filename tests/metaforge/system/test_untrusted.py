"""Untrusted files: only regular files of a bounded size are read, and JSON has bounds too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from metaforge.errors import ConfigError, DataError
from metaforge.results.pictures import training_curve
from metaforge.results.records import read_json, read_metrics
from metaforge.results.report_page import write_report
from metaforge.runs.folder import require_run
from metaforge.system.lock import RunLock
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object, read_regular_file


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 40 + "]" * 40, "1" + "0" * 400, "1e400", "NaN", "9e300", "{"])
def test_invalid_json_and_json_beyond_the_bounds_is_refused(text: str) -> None:
    with pytest.raises(UNREADABLE):
        parse_json(text)


def test_json_within_the_bounds_is_read() -> None:
    value = {"a": [1, -1.5e299, None, True, "x", 2**62], "b": {"c": []}}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "x")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file(tmp_path / "x")


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_regular_file(tmp_path / "x", 4)
    with pytest.raises(ValueError, match="does not hold a JSON object"):
        read_object(tmp_path / "x")


def test_a_run_with_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    require_run(tmp_path)
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="not a regular file"):
        require_run(tmp_path)


def test_a_lock_file_of_nonsense_holds_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_bytes(b"[" * 100_000)
    RunLock(tmp_path).release()


def test_a_report_of_invalid_records_is_written_or_refused(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"steps": "x", "seconds": [1], "skipped": 3}')
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": "x", "loss": 1}\n[1]\n{"step": 1, "loss": 9e299, "val_score": 1, "val_score_ci": -1, "note": "x"}\n'
    )
    write_report(tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "training.png")
    (tmp_path / "status.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"status\.json is not JSON"):
        read_json(tmp_path / "status.json")
