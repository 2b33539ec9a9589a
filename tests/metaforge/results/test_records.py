"""The files of a run folder that reports are made of: how they are written, read and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from metaforge.errors import DataError
from metaforge.results.records import (
    caption,
    evaluation_path,
    headline_score,
    read_evaluations,
    read_json,
    read_metrics,
    read_text,
    read_toml,
    run_seconds,
    shape_text,
    without_per_task,
    write_evaluation,
    write_in_folder,
)
from run_folders import run_folder

RECORD: dict[str, Any] = {
    **{"format": 1, "dataset": "pixels", "learner": "reader", "split": "test", "seed": 7, "tasks": 2},
    **{"kind": "classification", "metric": "accuracy", "ways": 5, "shots": 1, "queries": 15},
    **{"norm": "support", "transductive": False, "note": "", "warn": "", "own_steps": 2},
    "chance": {"mean": 0.2, "sd": 0.0, "ci": 0.0, "tasks": 2},
    "floor": {"mean": 0.4, "sd": 0.0, "ci": 0.0, "tasks": 2},
    "scores": [
        {"steps": 0, "mean": 0.2, "sd": 0.0, "ci": 0.0, "tasks": 2},
        {"steps": 2, "mean": 0.8, "sd": None, "ci": None, "tasks": 1},
        {"steps": 9, "mean": 0.7, "sd": 0.0, "ci": 0.0, "tasks": 2},
    ],
    "measures": {},
    "per_task": {
        **{"chance": [0.2, 0.2], "floor": [0.4, 0.4], "measures": {}},
        "scores": {"0": [0.2, 0.2], "2": [0.8, None], "9": [0.7, 0.7]},
    },
}


def test_an_evaluation_is_written_with_one_line_per_field_and_read_back(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, RECORD)
    assert path == evaluation_path(tmp_path, "test", 5, 1) == tmp_path / "evaluation" / "test-5w1s.json"
    assert len(path.read_text().splitlines()) == len(RECORD) + 2
    assert read_evaluations(tmp_path) == [RECORD]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_evaluation(tmp_path, {**RECORD, "odd": float("nan")})


def test_missing_files_are_empty(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert (read_json(missing), read_toml(missing), read_text(missing)) == ({}, {}, "")
    assert (read_metrics(missing), read_evaluations(missing)) == ([], [])


@pytest.mark.parametrize(
    ("text", "read", "match"),
    [
        ("[1]", read_json, "not a valid JSON object"),
        ("{", read_json, "not a valid JSON object"),
        ("a = [", read_toml, "not valid TOML"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, read: Any, match: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        read(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_a_damaged_line_of_the_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="Line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_metrics_keep_numbers_and_nulls_only(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"step": 1, "loss": None, "flag": True, "name": "x"},
        {"loss": 2.0},
        [3],
        {"step": 4, "loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}, {"step": 4, "loss": 0.5}]


def test_evaluations_are_read_in_the_order_of_their_shapes(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", shots=[10, 2])
    assert [record["shots"] for record in read_evaluations(tmp_path / "run")] == [2, 10]


def test_writing_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_in_folder(tmp_path / "deep" / "file", "old")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_in_folder(tmp_path / "deep" / "file", "new")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_text() == "old"


def test_the_headline_score_is_that_after_the_learners_own_steps() -> None:
    assert headline_score(RECORD)["mean"] == 0.8
    assert headline_score({**RECORD, "own_steps": 5})["mean"] == 0.7


def test_the_duration_of_a_run_is_a_number_or_none() -> None:
    assert run_seconds({"seconds": 3}) == 3.0
    assert [run_seconds(status) for status in ({}, {"seconds": None}, {"seconds": "3"}, {"seconds": True})] == [
        None
    ] * 4


def test_values_of_every_task_can_be_left_out() -> None:
    assert without_per_task(RECORD) == {name: value for name, value in RECORD.items() if name != "per_task"}


def test_texts_name_shape_learner_and_data_set() -> None:
    assert shape_text(RECORD) == "5-way 1-shot"
    assert shape_text({**RECORD, "kind": "regression", "shots": 10}) == "10 points"
    assert caption(RECORD) == "pixels · reader · 5-way 1-shot · test split"
