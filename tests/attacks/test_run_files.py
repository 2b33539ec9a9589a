"""Invalid run files: huge or deeply nested ones, other encodings, and paths that are not files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaforge.cli.app import app

FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a missing file": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path),
    "an infinite device": lambda path: path.symlink_to("/dev/zero"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "UTF-16": lambda path: path.write_text("seed = 1", encoding="utf-16"),
    "UTF-32": lambda path: path.write_text("seed = 1", encoding="utf-32"),
    "Latin-1": lambda path: path.write_bytes('device = "caf\xe9"'.encode("latin-1")),
    "a file of 2 MiB": lambda path: path.write_bytes(b"# " + b"x" * 2**21),
    "unclosed lists": lambda path: path.write_text("seed = " + "[" * 100_000),
    "unclosed tables": lambda path: path.write_text("seed = " + "{a=" * 100_000),
    "deep lists": lambda path: path.write_text("seed = " + "[" * 300 + "]" * 300),
    "deep tables": lambda path: path.write_text("learner." + ".".join("a" * 3000) + " = 1"),
    "a deep header": lambda path: path.write_text("[learner." + ".".join("a" * 3000) + "]"),
    "deep options of a set": lambda path: path.write_text("adapters.sgd." + ".".join("a" * 3000) + " = 1"),
    "a number of 10,000 digits": lambda path: path.write_text("seed = " + "9" * 10_000),
    "a duplicate key": lambda path: path.write_text("seed = 1\nseed = 2"),
    "a table and a value": lambda path: path.write_text("seed = 1\n[seed]\na = 1"),
    "JSON": lambda path: path.write_text('{"seed": 1}'),
    "YAML": lambda path: path.write_text("seed: 1\n"),
    "a Python object in YAML": lambda path: path.write_text("!!python/object/apply:os.system ['true']"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_invalid_run_file_is_refused_quickly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    FILES[name](path)
    start = time.process_time()
    result = CliRunner().invoke(app, ["config", "--config", str(path)])
    assert time.process_time() - start < 2
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output
    assert len(result.output) < 2000


@pytest.mark.parametrize(
    "setting",
    [
        "seed=" + "[" * 100_000,
        "seed=" + "9" * 10_000,
        "seed=0x" + "f" * 5000,
        "train.lr=[0x" + "f" * 5000 + "]",
        "learner." + ".".join("a" * 3000) + "=1",
        "adapters.sgd." + ".".join("a" * 3000) + "=1",
        "." * 3000 + "=1",
        "seed.a.b=1",
        "=1",
        "seed",
    ],
    ids=range(10),
)
def test_an_invalid_setting_is_refused_quickly(setting: str) -> None:
    result = CliRunner().invoke(app, ["config", "--adapter", "sgd", "--set", setting])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output
    assert len(result.output) < 2000


def test_many_mistakes_are_reported_in_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('learner = "maml"\n[train]\n' + "".join(f'"a{n}\\u001b[2J" = "{"x" * 900}"\n' for n in range(1000)))
    result = CliRunner().invoke(app, ["config", "--config", str(path)])
    assert result.exit_code == 2
    assert "There are 990 more errors." in result.output
    assert len(result.output) < 10_000
    assert "\x1b" not in result.output


def test_a_byte_order_mark_and_other_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes("seed = 7\r\n[task]\r\nways = 3\r\n".encode("utf-8-sig"))
    result = CliRunner().invoke(app, ["config", "--config", str(path)])
    assert result.exit_code == 0, result.output
    assert "seed = 7" in result.output


def test_a_run_file_may_come_through_a_pipe(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"seed = 7\n")
    os.close(write_end)
    try:
        result = CliRunner().invoke(app, ["config", "--config", f"/dev/fd/{read_end}"])
    finally:
        os.close(read_end)
    assert result.exit_code == 0, result.output
