"""`metaforge data`: inspect, fetch and preview."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_commands import Calls, Dots, run_command
from metaforge.authoring.protocols import TaskSpec
from metaforge.cli.data import _DownloadProgress

pytestmark = pytest.mark.usefixtures("calls")


def test_data_inspect() -> None:
    answer = json.loads(run_command("data inspect dots --json --set dataset.size=3").stdout)
    assert answer["splits"]["train"] == {"classes": 9}
    assert answer["splits"]["val"] == {"unavailable": "No val split."}
    assert answer["task"]["input shape"] == [1, 3, 3]
    assert "made of dots" in run_command("data inspect dots").stdout


def test_numbers_are_rounded_in_text_but_not_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dots, "facts", lambda self, split: {"images": 16000, "error": 4.2516666666, "what": "dots"})
    assert "  test: images 16,000, error 4.252, what dots\n" in run_command("data inspect dots").stdout
    assert json.loads(run_command("data inspect dots --json").stdout)["splits"]["test"]["error"] == 4.2516666666


def test_a_data_set_without_a_training_split_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Dots.facts
    monkeypatch.setattr(Dots, "facts", lambda self, split: facts(self, "val"))
    result = run_command("data inspect dots")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "No val split." in result.stderr


def test_data_fetch_prints_its_progress() -> None:
    result = run_command("data fetch dots")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip().endswith("dots.zip")
    assert len(result.stderr.splitlines()) == 11
    answer = json.loads(run_command("data fetch dots --json").stdout)
    assert (answer["name"], [Path(path).name for path in answer["files"]]) == ("dots", ["dots.zip"])


def test_a_download_of_unknown_size_prints_a_line_for_every_10_mb(capsys: pytest.CaptureFixture[str]) -> None:
    progress = _DownloadProgress()
    for done in range(0, 25_000_001, 5_000_000):
        progress("x.zip", done, None)
    assert capsys.readouterr().err.splitlines() == ["x.zip: 0.0 MB", "x.zip: 10.0 MB", "x.zip: 20.0 MB"]


def test_a_data_set_that_needs_no_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Dots, "fetch")
    result = run_command("data fetch dots")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "needs no download" in result.stderr


def test_data_preview_draws_one_task(calls: Calls) -> None:
    result = run_command("data preview dots --out pictures/x.png --index 3")
    assert result.exit_code == 0, result.stderr
    assert Path("pictures/x.png").read_bytes() == b"picture"
    assert calls[0].task.support.x.unique().tolist() == [3.0]
    answer = json.loads(run_command("data preview dots --out x.png --index 2 --json").stdout)
    assert (answer["picture"], answer["index"], answer["shots"]) == ("x.png", 2, 1)


def test_a_task_that_is_not_what_spec_promised_is_the_error_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dots, "spec", lambda self, split, shape: TaskSpec("classification", (3, 2, 2), 5, shape))
    monkeypatch.setattr(Dots, "sample", lambda self, split, shape, first, count, *, seed: None)
    result = run_command("data preview dots --out x.png")
    assert result.exit_code == 4
    assert "The data set Dots breaks its contract: sample returns NoneType" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("data inspect dts", 4, "Did you mean 'dots'?"),
        ("data preview dots --out x.png --set task.ways=10", 3, "use at most 9 ways"),
        ("data inspect dots --set task.ways=10", 3, "use at most 9 ways"),
    ],
)
def test_invalid_input_ends_with_a_message_and_an_exit_code(arguments: str, code: int, sentence: str) -> None:
    result = run_command(arguments)
    assert result.exit_code == code, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
