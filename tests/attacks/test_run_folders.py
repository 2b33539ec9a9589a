"""Run folders of somebody else: their records are evaluated, resumed and reported without effect outside the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metaforge.cli.app import app

CORPUS = Path(__file__).parents[1] / "corpus" / "checkpoints" / "schema-2"
EVIL = "\x1b[31m\x07\x9b2J # x\n\n# evil\n<script>"


def invoked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with one evaluation, two folders below `tmp_path`."""
    path = tmp_path / "deep" / "run"
    shutil.copytree(CORPUS, path)
    assert invoked("evaluate", path, "--tasks", "2", "--no-progress").exit_code == 0
    return path


def commands(run: Path) -> list[list[str | Path]]:
    quiet: list[str | Path] = ["--no-progress"]
    return [["evaluate", run, "--tasks", "2", *quiet], ["train", "--resume", run, *quiet]]


def rewritten(run: Path, **changes: Any) -> None:
    """Add a record to the folder that differs from the valid one in some fields."""
    record = json.loads((run / "evaluation" / "test-1w5s.json").read_text())
    (run / "evaluation" / "other.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize("field", ["shots", "ways", "split"])
def test_a_path_in_a_record_is_written_nowhere(run: Path, tmp_path: Path, field: str) -> None:
    """`evaluate` and `--resume` wrote a PNG to the path in the record, and made folders on the way."""
    rewritten(run, **{field: "x/../../../PWNED"})
    before = sorted(path for path in tmp_path.rglob("*") if run not in path.parents)
    for command in commands(run):
        result = invoked(*command)
        assert result.exit_code == 0, result.output
        assert f"Warning: evaluation/other.json is not a valid evaluation: {field} is" in result.stderr
    assert sorted(path for path in tmp_path.rglob("*") if run not in path.parents) == before
    assert not [path for path in run.rglob("*") if "PWNED" in path.name]


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a note alone": lambda record: [record.pop(name) for name in [*record] if name != "note"],
    "scores that are text": lambda record: record.update(scores="abc"),
    "no scores": lambda record: record.update(scores=[]),
    "another metric": lambda record: record.update(metric="evil", scale=None),
    "a unit that steers": lambda record: record["scale"].update(unit="\x1b[31m"),
    "a seed of 22 digits": lambda record: record.update(seed=10**21),
    "no values of the tasks": lambda record: record["per_task"].update(scores={}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_evaluation_is_named_and_left_out(run: Path, name: str) -> None:
    """It ended both commands with exit code 1, and after a resume the status said 0."""
    record = json.loads((run / "evaluation" / "test-1w5s.json").read_text())
    BROKEN[name](record)
    (run / "evaluation" / "other.json").write_text(json.dumps(record))
    for command in commands(run):
        result = invoked(*command)
        assert result.exit_code == 0, result.output
        assert "other.json is not a valid" in result.stderr
        assert "other.json is not a valid" in (run / "report.md").read_text()
    assert json.loads((run / "status.json").read_text())["exit_code"] == 0


def test_texts_of_a_run_folder_cannot_steer_the_terminal(run: Path) -> None:
    """Control characters in records, in the command, in metrics and in the folder's name were printed as they are."""
    rewritten(run, shots=2, learner=EVIL, dataset=EVIL, note=EVIL, warn=EVIL, norm=EVIL)
    (run / "evaluation" / f"{EVIL.replace('/', '')}.json").write_text(json.dumps({EVIL: EVIL}))
    (run / "command.txt").write_text(EVIL)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 5, EVIL: 1.0}) + "\n")
    named = run.rename(run.with_name(f"run {EVIL.partition('<')[0]}"))
    for command in (
        *commands(named),
        ["evaluate", named, "--tasks", "2", "--no-progress", "--json"],
        ["ckpt", "show", named],
    ):
        result = invoked(*command)
        assert result.exit_code == 0, result.output
        for stream in (result.stdout, result.stderr):
            assert stream.replace("\n", "").isprintable()
        if "--json" in command:
            assert json.loads(result.stdout)["folder"] == str(named)
        assert (named / "report.md").read_text().replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate {run} --seed 9999999999999999999999",
        "evaluate {run} --seed 9223372036854775808",
        "evaluate {run} --tasks 9999999999999999999999",
        "evaluate {run} --ways 9999999999999999999999",
        "evaluate {run} --shots 9999999999999999999999",
        "evaluate {run} --steps 9999999999999999999999",
        "evaluate {run} --split ../x",
        "data preview glyphs --out {run}/x.png --seed 9999999999999999999999",
        "data preview glyphs --out {run}/x.png --index 9999999999999999999999",
    ],
)
def test_a_number_that_no_record_can_hold_is_refused(run: Path, arguments: str) -> None:
    """A seed of 22 digits was evaluated and saved, and the folder could not be evaluated again."""
    before = sorted(run.rglob("*"))
    result = invoked(*arguments.format(run=run).split())
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert sorted(run.rglob("*")) == before
    assert invoked("evaluate", run, "--tasks", "2", "--no-progress").exit_code == 0


HOSTILE_DATA: dict[str, str] = {
    "deep": "[" * 100_000,
    "a path": '{"format": 1, "note": "", "specs": [], "classes": {"../../x": ["a"]}}',
    "huge": '{"format": 1, "note": "", "classes": {}, "specs": [{"split": "test", "kind": "regression", "x_shape":'
    ' [100000, 100000], "outputs": 1, "ways": 1, "shots": 5, "queries": 10}]}',
}


@pytest.mark.parametrize("name", HOSTILE_DATA)
def test_an_invalid_record_of_the_data_ends_with_an_error_that_names_it(run: Path, name: str) -> None:
    (run / "data.json").write_text(HOSTILE_DATA[name])
    result = invoked("evaluate", run, "--tasks", "2", "--no-progress")
    assert result.exit_code == 3, result.output
    assert "data.json is not" in result.stderr


def test_a_source_of_initial_values_is_read_as_any_other_run_folder(run: Path, tmp_path: Path) -> None:
    words = ["train", "--learner", "maml", "--dataset", "sinusoid", "--steps", "0", "--no-progress", "--init-from", run]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert invoked(*words, "--out", tmp_path / "good").exit_code == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (run / "pictures" / "link").symlink_to("/etc/passwd")
    result = invoked(*words, "--out", tmp_path / "bad")
    assert (result.exit_code, (tmp_path / "bad").exists()) == (2, False)
    assert "symbolic link" in result.stderr
