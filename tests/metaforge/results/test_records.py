"""The files of a run folder that reports are made of: how they are written, read and refused."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from metaforge.errors import DataError
from metaforge.results.records import (
    caption,
    evaluation_path,
    headline_score,
    path_inside,
    read_environment,
    read_evaluations,
    read_json,
    read_metrics,
    read_status,
    read_table,
    read_text,
    read_toml,
    run_seconds,
    shape_text,
    valid_evaluations,
    without_per_task,
    write_evaluation,
    write_in_folder,
)
from run_folders import run_folder

RECORD: dict[str, Any] = {
    "format": 1,
    "dataset": "pixels",
    "learner": "reader",
    "split": "test",
    "seed": 7,
    "tasks": 2,
    "kind": "classification",
    "metric": "accuracy",
    "ways": 5,
    "shots": 1,
    "queries": 15,
    "norm": "support",
    "transductive": False,
    "note": "",
    "warn": "",
    "own_steps": 2,
    "chance": {"mean": 0.2, "sd": 0.0, "ci": 0.0, "tasks": 2},
    "floor": {"mean": 0.4, "sd": 0.0, "ci": 0.0, "tasks": 2},
    "scores": [
        {"steps": 0, "mean": 0.2, "sd": 0.0, "ci": 0.0, "tasks": 2},
        {"steps": 2, "mean": 0.8, "sd": None, "ci": None, "tasks": 1},
        {"steps": 9, "mean": 0.7, "sd": 0.0, "ci": 0.0, "tasks": 2},
    ],
    "measures": {},
    "per_task": {
        "chance": [0.2, 0.2],
        "floor": [0.4, 0.4],
        "measures": {},
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
    assert shape_text({**RECORD, "kind": "regression", "metric": "mse", "shots": 10}) == "10 points"
    assert caption(RECORD) == "pixels · reader · 5-way 1-shot · test split"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", ".part", "x\x1b", "é", "x\n"])
def test_a_name_that_is_no_file_inside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A record of somebody else has a path in place of a number of shots."""
    with pytest.raises(DataError, match="would not be a file inside the folder"):
        path_inside(tmp_path, "pictures", name)
    with pytest.raises(DataError, match="would not be a file inside the folder"):
        evaluation_path(tmp_path, "test", 5, f"1/../{name}")  # type: ignore[arg-type]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "pictures").symlink_to(outside)
    with pytest.raises(DataError, match="would not be a file inside the folder"):
        path_inside(run, "pictures", "training.png")
    for path in (run / "pictures" / "x.png", run / ".." / "outside" / "x.png"):
        with pytest.raises(DataError, match="is not inside the run folder"):
            write_in_folder(path, "x", run_folder=run)
    assert not any(outside.iterdir())


def test_an_invalid_evaluation_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    """Somebody else's records lack fields, or have other types in them."""
    write_evaluation(tmp_path, RECORD)
    for number, changes in enumerate(({"scores": "abc"}, {"scores": []}, {"metric": "evil"}, {"shots": "../x"})):
        (tmp_path / "evaluation" / f"{number}.json").write_text(json.dumps(RECORD | changes))
    (tmp_path / "evaluation" / "4.json").write_text('{"note": 1}')
    records, errors = valid_evaluations(tmp_path)
    assert records == [RECORD]
    assert [error.what.partition(":")[0] for error in errors] == [
        f"evaluation/{number}.json is not a valid evaluation" for number in range(5)
    ]
    with pytest.raises(DataError, match=r"evaluation/0\.json is not a valid evaluation: scores is 'abc'"):
        read_evaluations(tmp_path)


def test_invalid_fields_of_status_and_environment_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"outcome": "finished", "steps": "x", "own": 1}')
    (tmp_path / "env.json").write_text('{"torch": "2.13", "plugins": ["x"]}')
    status, problems = read_status(tmp_path)
    assert (status, problems) == (
        {"outcome": "finished", "own": 1},
        ["status.json: steps is 'x', but should be an integer."],
    )
    environment, problems = read_environment(tmp_path)
    assert environment == {"torch": "2.13"}
    assert problems == ["env.json: plugins is ['x'], but should be a table."]
    assert read_status(tmp_path / "missing") == ({}, [])


def test_a_table_of_the_configuration_is_a_table() -> None:
    assert read_table({"dataset": {"name": "x"}}, "dataset") == {"name": "x"}
    assert read_table({"dataset": "x"}, "dataset") == read_table({}, "dataset") == {}


def test_a_long_metrics_file_is_read_quickly_and_thinned(tmp_path: Path) -> None:
    """A million lines took over half a minute, and a plot of them longer."""
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 1_000_001):
            validated = f', "val_score": {step / 1e6}' if step % 10_000 == 7 else ""
            file.write(f'{{"step": {step}, "loss": 0.5, "score": 0.25{validated}}}\n')
    start = time.process_time()
    rows = read_metrics(path)
    assert time.process_time() - start < 5
    steps = [row["step"] for row in rows]
    assert steps == sorted({*steps})
    assert (steps[0], steps[-1]) == (1, 1_000_000)
    assert 2000 <= len(rows) <= 8001
    assert len([row for row in rows if "val_score" in row]) == 100
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 500


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + b"x" * 3_000_000)
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read: line 2 has more than 1,048,576 bytes"):
        read_metrics(tmp_path / "metrics.jsonl")
