"""Tests of the JSON Lines hook: its lines, files that are complete at any time, and resumed runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hooking import drive, run_of
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, StorageError
from metaforge.registry.scan import scan
from metaforge_plugins.hooks.jsonl import Jsonl


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(first: int, last: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"loss": step / 10}) for step in range(first, last + 1)]


def test_a_line_for_every_step_and_evaluation(tmp_path: Path) -> None:
    steps = [(1, {"loss": 0.5, "odd": math.nan}), (2, {"loss": math.inf, "step": 9.0})]
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path), steps, validations={2: {"score": 0.25}})
    assert rows(tmp_path / "steps.jsonl") == [
        {"step": 1, "split": "train", "loss": 0.5, "odd": None},
        {"step": 2, "split": "train", "loss": None},
        {"step": 2, "split": "val", "score": 0.25},
    ]
    assert (tmp_path / "steps.jsonl").read_text().startswith('{"step": 1, "split": "train", ')


def test_lines_can_be_written_every_few_steps_to_another_file(tmp_path: Path) -> None:
    plugin = Jsonl(Jsonl.Config(file="thin.jsonl", every=3))
    drive(plugin, run_of(tmp_path), losses(1, 7), validations={4: {"score": 1.0}})
    assert [(row["step"], row["split"]) for row in rows(tmp_path / "thin.jsonl")] == [
        (3, "train"),
        (4, "val"),
        (6, "train"),
    ]


def test_a_reader_sees_complete_lines_at_any_time(tmp_path: Path) -> None:
    plugin, path = Jsonl(Jsonl.Config()), tmp_path / "steps.jsonl"
    plugin.metaforge_run_start(run_of(tmp_path))
    assert path.read_bytes() == b""
    for step in (1, 2):
        plugin.metaforge_after_step(step, {"x" * 20_000: 1.0})
        text = path.read_text()
        assert text.endswith("\n")
        assert len(rows(path)) == step


def test_a_resumed_run_keeps_the_lines_up_to_its_start(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path), losses(1, 6), validations={4: {"score": 0.5}, 6: {"score": 0.7}})
    with path.open("a") as file:
        file.write('{"step": 4, "spl')  # the process was killed
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path, start=4), losses(5, 7))
    expected = [(1, "train"), (2, "train"), (3, "train"), (4, "train"), (4, "val"), (5, "train"), (6, "train")]
    assert [(row["step"], row["split"]) for row in rows(path)] == [*expected, (7, "train")]
    assert [child.name for child in tmp_path.iterdir()] == ["steps.jsonl"]
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path), losses(1, 2))
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_a_resumed_run_with_a_new_hook_creates_the_file(tmp_path: Path) -> None:
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path, start=4), losses(5, 5))
    assert [row["step"] for row in rows(tmp_path / "steps.jsonl")] == [5]


@pytest.mark.parametrize("damaged", [b"no JSON\n", b"[]\n", b"{}\n", b"\xff\n"])
def test_a_damaged_file_is_not_continued_and_not_touched(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"steps\.jsonl cannot be continued") as caught:
        drive(Jsonl(Jsonl.Config()), run_of(tmp_path, start=4), [])
    assert "move the file away" in caught.value.remedy
    assert path.read_bytes() == damaged
    drive(Jsonl(Jsonl.Config()), run_of(tmp_path), losses(1, 1))
    assert [row["step"] for row in rows(path)] == [1]


def test_a_dry_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drive(Jsonl(Jsonl.Config()), run_of(None), losses(1, 1), validations={1: {"score": 1.0}})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot write"):
        drive(Jsonl(Jsonl.Config()), run_of(tmp_path / "gone"), [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../up.jsonl", "is not a file name"),
        ("a\\b.jsonl", "is not a file name"),
        (".jsonl", "is not a file name"),
        ("config.toml", "is not a file name"),
        ("new\nline.jsonl", "is not a file name"),
        ("metrics.jsonl", "the run itself writes"),
        ("Metrics.jsonl", "the run itself writes"),
    ],
)
def test_the_file_is_in_the_run_folder_and_no_file_of_the_run(name: str, message: str) -> None:
    values = {"learner": "protonet", "hooks": {"jsonl": {"file": name}}}
    with pytest.raises(ConfigError, match=message) as caught:
        resolve([Layer("test", values)], scan())
    assert "hooks.jsonl.file" in str(caught.value)
