"""Tests of the CSV hook: rows, quoting, and resumed runs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from hooking import drive, run_of
from metaforge.errors import ConfigError
from metaforge_plugins.hooks.csv import Csv


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_every_metric_is_a_row_whenever_it_first_appears(tmp_path: Path) -> None:
    steps = [(1, {"loss": 0.1 + 0.2}), (2, {"loss": math.nan, 'my, "own"\nfigure': -math.inf})]
    drive(Csv(Csv.Config()), run_of(tmp_path), steps, validations={2: {"score": 0.25}})
    path = tmp_path / "metrics.csv"
    assert table(path) == [
        ["step", "split", "metric", "value"],
        ["1", "train", "loss", "0.30000000000000004"],
        ["2", "train", "loss", "nan"],
        ["2", "train", 'my, "own" figure', "-inf"],
        ["2", "val", "score", "0.25"],
    ]
    assert len(path.read_bytes().split(b"\n")) == 6  # one line per row, and no other line ends
    assert b"\r" not in path.read_bytes()


def test_rows_can_be_written_every_few_steps(tmp_path: Path) -> None:
    drive(Csv(Csv.Config(every=2)), run_of(tmp_path), [(step, {"loss": 1.0}) for step in range(1, 6)])
    assert [row[0] for row in table(tmp_path / "metrics.csv")] == ["step", "2", "4"]


def test_a_resumed_run_keeps_the_rows_up_to_its_start(tmp_path: Path) -> None:
    steps = [(step, {"loss": float(step), "a,b": 0.0}) for step in range(1, 13)]
    drive(Csv(Csv.Config()), run_of(tmp_path), steps, validations={10: {"score": 0.5}})
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write("3,train,lo")
    drive(Csv(Csv.Config()), run_of(tmp_path, start=10), [(11, {"loss": 11.5})])
    rows = table(path)
    assert rows[0] == ["step", "split", "metric", "value"]
    assert rows[-2:] == [["10", "val", "score", "0.5"], ["11", "train", "loss", "11.5"]]
    assert len(rows) == 1 + 2 * 10 + 1 + 1
    drive(Csv(Csv.Config()), run_of(tmp_path), [])
    assert table(path) == [["step", "split", "metric", "value"]]


@pytest.mark.parametrize("text", ["step,loss\n1,0.5\n", "", "step,split,metric,value\nx,train,loss,1\n"])
def test_a_file_with_other_contents_is_not_continued(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"metrics\.csv cannot be continued"):
        drive(Csv(Csv.Config()), run_of(tmp_path, start=1), [])
    assert (tmp_path / "metrics.csv").read_text() == text


def test_a_dry_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drive(Csv(Csv.Config()), run_of(None), [(1, {"loss": 1.0})])
    assert list(tmp_path.iterdir()) == []
