"""`metaforge evaluate`: flags, the choice of a checkpoint, and the tables that are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fake_commands import Calls, run_command
from metaforge.cli.app import app
from metaforge.cli.evaluate import evaluate_folder, print_evaluation
from metaforge.registry.registry import Registry
from metaforge.runs import checkpoint
from run_folders import run_folder


def invoked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_flags_are_passed_to_the_evaluation(calls: Calls) -> None:
    result = run_command(
        "evaluate . --shots 1,5 --steps 0,3 --tasks 9 --split val --seed 4 --ways 3 --device cpu --json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"accuracy": {"mean": 0.5}}
    call = calls[0]
    assert (call.shots, call.steps, call.tasks, call.split, call.seed) == ([1, 5], [0, 3], 9, "val", 4)
    assert (call.ways, call.device) == (3, "cpu")


def test_of_several_processes_rank_0_evaluates(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert run_command("evaluate . --json").exit_code == 0
        assert len(calls) == (rank == 0)


def test_damaged_checkpoints_are_printed_as_warnings(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_folder(Path("run"), Registry([]), progress=False, which="best", tasks=5)
    assert capsys.readouterr().err == "Warning: state.json is damaged\n"
    assert (calls[0].which, calls[0].tasks) == ("best", 5)


def test_an_evaluation_is_printed_as_tables_with_the_paths_of_pictures_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_folder(tmp_path / "run")
    print_evaluation({**summary, "folder": "here", "pictures": ["a.png", "b.png"]})
    answer = capsys.readouterr().out
    for part in ("pixels · reader", "accuracy ± 95 % CI", "reader: own metrics", "instance 1"):
        assert part in answer
    assert answer.endswith("pictures: a.png, b.png\nreport: here/report.md\n")


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("evaluate nowhere", 2, "no run folder nowhere"),
        ("evaluate . --shots 1,x", 2, "integers separated by commas"),
        ("evaluate . --ways 0", 2, "ways"),
    ],
)
def test_invalid_input_ends_with_a_message_and_an_exit_code(arguments: str, code: int, sentence: str) -> None:
    result = run_command(arguments)
    assert result.exit_code == code, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("which", "step"), [("latest", 6), ("best", 4), ("3", 3)])
def test_any_checkpoint_can_be_evaluated(saved_run: Path, which: str, step: int) -> None:
    done = invoked("evaluate", saved_run, "--checkpoint", which, "--tasks", "2", "--no-progress", "--json")
    assert done.exit_code == 0, done.stderr
    choice: Any = int(which) if which.isdecimal() else which
    saved, _ = checkpoint.chosen(saved_run / "ckpt", choice)
    assert saved.step == step
    whole = checkpoint.load(saved_run / "ckpt" / f"step-{step:07d}")
    assert all(torch.equal(saved.values[name], whole.values[name]) for name in whole.values)


@pytest.mark.parametrize(("which", "code"), [("7", 5), ("newest", 2), ("-1", 2), ("9" * 30, 2)])
def test_a_checkpoint_that_does_not_exist_is_refused(saved_run: Path, which: str, code: int) -> None:
    refused = invoked("evaluate", saved_run, "--checkpoint", which, "--no-progress")
    assert refused.exit_code == code, refused.output
    (saved_run / "ckpt" / "BEST").unlink()
    assert invoked("evaluate", saved_run, "--checkpoint", "best", "--no-progress").exit_code == 5
