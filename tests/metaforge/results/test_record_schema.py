"""The schemas of a run folder's JSON files: every record so far is valid, and each hostile one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fake_runs import interaction_run
from metaforge.authoring.scale import RETURN
from metaforge.results.record_schema import EnvironmentRecord, EvaluationRecord, StatusRecord, problems, step_label
from metaforge.results.records import read_evaluations, read_metrics, scale_of
from run_folders import run_folder

ROOT = Path(__file__).parents[3]
FOLDERS = sorted(
    path.parent for part in ("benchmarks/records", "tests/corpus") for path in (ROOT / part).rglob("config.toml")
)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    run_folder(tmp_path / "run", shots=[1])
    return read_evaluations(tmp_path / "run")[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_committed_records_are_valid(folder: Path) -> None:
    for model, name in ((StatusRecord, "status.json"), (EnvironmentRecord, "env.json")):
        assert problems(model, json.loads((folder / name).read_text())) == {}
    assert len(read_evaluations(folder)) == len([*(folder / "evaluation").glob("*.json")])
    lines = folder / "metrics.jsonl"
    assert len(read_metrics(lines)) == (len(lines.read_text().splitlines()) if lines.is_file() else 0)


def test_there_are_committed_records() -> None:
    assert len(FOLDERS) >= 10
    assert sum(len([*(folder / "evaluation").glob("*.json")]) for folder in FOLDERS) >= 8


def test_what_an_evaluation_writes_is_valid(record: dict[str, Any]) -> None:
    assert problems(EvaluationRecord, record) == {}


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("shots", "x/../../../PWNED", "shots is 'x/../../../PWNED', but should be an integer"),
        ("ways", "\x1b[31m5", "ways is '\\x1b[31m5', but should be an integer"),
        ("split", "../test", "split is '../test', but should be a string that matches"),
        ("split", "test\n", "split is 'test\\n', but should be a string that matches"),
        ("split", ".hidden", "but should be a string that matches"),
        ("ways", True, "ways is True, but should be an integer"),
        ("ways", 5.0, "ways is 5.0, but should be an integer"),
        ("ways", 10**6, "but should be less than or equal to 100000"),
        ("seed", 2**63, "but should be less than 9223372036854775808"),
        ("seed", -1, "but should be greater than or equal to 0"),
        ("metric", 3, "metric is 3, but should be a string"),
        ("metric", "", "metric is '', but should"),
        ("scale", {}, "scale.higher_is_better is missing"),
        ("scores", "abc", "scores is 'abc', but should be a list"),
        ("scores", [], "scores is [], but should be a list of at least 1 item"),
        ("scores", [1], "scores.0 is 1, but should be a table"),
        ("chance", 1, "chance is 1, but should be a table"),
        ("extra", 1, "extra is unknown"),
        ("note", 3, "note is 3, but should be a string"),
        ("transductive", 1, "transductive is 1, but should be true or false"),
    ],
)
def test_an_invalid_field_is_named(record: dict[str, Any], field: str, value: Any, sentence: str) -> None:
    found = problems(EvaluationRecord, record | {field: value})
    assert list(found) == [field]
    assert sentence in found[field]


def test_a_missing_field_is_named(record: dict[str, Any]) -> None:
    assert problems(EvaluationRecord, {"note": "1"})["format"] == "format is missing."
    for name in record.keys() - {"step", "damaged", "scale"}:
        assert problems(EvaluationRecord, {key: value for key, value in record.items() if key != name})


def test_fields_that_contradict_each_other_are_refused(record: dict[str, Any]) -> None:
    def changed(**columns: Any) -> dict[str, Any]:
        return record | {"per_task": record["per_task"] | columns}

    for invalid in (
        changed(scores={}),
        changed(floor=record["per_task"]["floor"][:-1]),
        changed(floor=[2.0] * record["tasks"]),
        changed(measures={}),
        record | {"scores": [record["scores"][0]] * 2},
        record | {"tasks": record["tasks"] + 1},
    ):
        assert list(problems(EvaluationRecord, invalid)) == [""]


def test_scales_of_other_kinds_are_read_and_checked(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", interaction_run(tmp_path / "run"), shots=None)
    (record,) = read_evaluations(tmp_path / "run")
    assert min(record["per_task"]["scores"]["0"]) < -0.5
    assert scale_of(record) == RETURN
    scale = record["scale"]
    for invalid in (
        {key: value for key, value in record.items() if key != "scale"},
        record | {"scale": scale | {"percent": True}},
        record | {"scale": scale | {"minimum": 0.0}},
        record | {"scale": scale | {"unit": "\x1b[31m"}},
        record | {"chance": record["scores"][1] | {"steps": 2}},
        record | {"per_task": record["per_task"] | {"floor": [0.5] * 8}},
    ):
        assert problems(EvaluationRecord, invalid)


def test_status_and_environment_may_have_more_fields_but_none_of_another_type() -> None:
    assert (
        problems(StatusRecord, {"outcome": "finished", "best_loss": 0.5, "resumed": {"step": 1, "exact": True}}) == {}
    )
    assert problems(StatusRecord, {"steps": "x", "seconds": [1], "skipped": 3}).keys() == {
        "steps",
        "seconds",
        "skipped",
    }
    assert problems(EnvironmentRecord, {"threads": 2, "more": [1]}) == {}
    assert problems(EnvironmentRecord, {"plugins": ["os:system"], "torch": 2}).keys() == {"plugins", "torch"}


def test_a_learner_without_steps_has_one_label() -> None:
    assert (step_label(None), step_label(0)) == ("after", "0")
