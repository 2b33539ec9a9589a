"""`metaforge ckpt`: what it shows, what it refuses, what it removes; and evaluation of any checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import metaforge
from metaforge.cli.app import app
from metaforge.runs import checkpoint
from metaforge.system.lock import RunLock

CORPUS = Path(__file__).parents[2] / "corpus" / "checkpoints"


def invoked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with checkpoints of steps 3 to 6, of which step 4 is the best."""
    path = tmp_path / "run"
    shutil.copytree(CORPUS / "schema-2", path)
    saved = checkpoint.load(path / "ckpt" / "step-0000005")
    facts = {name: value for name, value in saved.facts.items() if name not in ("schema", "step")}
    shutil.rmtree(path / "ckpt")
    for step in range(3, 7):
        values = {name: value + step for name, value in saved.values.items()}
        checkpoint.save(path / "ckpt", step, values, saved.training, facts)
    checkpoint.mark_best(path / "ckpt", 4)
    return path


def test_show_tells_steps_sizes_and_the_best(run: Path) -> None:
    found = json.loads(invoked("ckpt", "show", run, "--json").stdout)["checkpoints"]
    assert [(one["step"], one["best"], one["valid"]) for one in found] == [
        (6, False, True),
        (5, False, True),
        (4, True, True),
        (3, False, True),
    ]
    files = (run / "ckpt" / "step-0000006").iterdir()
    assert found[0]["bytes"] == sum(file.stat().st_size for file in files)
    assert "best  valid" in invoked("ckpt", "show", run).stdout


def test_verify_names_what_is_damaged(run: Path) -> None:
    assert invoked("ckpt", "verify", run).exit_code == 0
    (run / "ckpt" / "step-0000006" / "state.json").write_bytes(b"{}")
    refused = invoked("ckpt", "verify", run, "--json")
    assert refused.exit_code == 5
    assert "1 of 4 checkpoints cannot be used. The checkpoint file state.json" in refused.stderr
    assert [one["valid"] for one in json.loads(refused.stdout)["checkpoints"]] == [False, True, True, True]
    assert invoked("ckpt", "show", run).exit_code == 0


def test_a_run_without_a_checkpoint_is_not_verified(run: Path) -> None:
    shutil.rmtree(run / "ckpt")
    refused = invoked("ckpt", "verify", run)
    assert (refused.exit_code, "There is no checkpoint" in refused.stderr) == (5, True)
    assert invoked("ckpt", "show", run).exit_code == 0


def test_prune_keeps_the_last_and_the_best(run: Path) -> None:
    (run / "ckpt" / ".step-0000009.1-ab.part").mkdir()
    done = invoked("ckpt", "prune", run, "--keep", "1", "--json")
    assert json.loads(done.stdout)["removed"] == ["step-0000005", "step-0000003"]
    assert sorted(path.name for path in (run / "ckpt").iterdir()) == ["BEST", "LATEST", "step-0000004", "step-0000006"]
    assert "removed: none" in invoked("ckpt", "prune", run).stdout


def test_a_run_that_is_written_is_not_pruned(run: Path) -> None:
    lock = RunLock(run)
    refused = invoked("ckpt", "prune", run)
    lock.release()
    assert refused.exit_code == 7
    assert checkpoint.steps(run / "ckpt") == [6, 5, 4, 3]


@pytest.mark.parametrize("command", ["show", "verify", "prune"])
def test_what_is_no_run_is_refused(tmp_path: Path, command: str) -> None:
    assert invoked("ckpt", command, tmp_path).exit_code == 2
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "ckpt").symlink_to(tmp_path)
    refused = invoked("ckpt", command, tmp_path)
    assert refused.exit_code == 2
    assert "is a symbolic link" in refused.stderr


@pytest.mark.parametrize(("which", "step"), [("latest", 6), ("best", 4), ("3", 3)])
def test_any_checkpoint_can_be_evaluated(run: Path, which: str, step: int) -> None:
    done = invoked("evaluate", run, "--checkpoint", which, "--tasks", "2", "--no-progress", "--json")
    assert done.exit_code == 0, done.stderr
    choice: Any = int(which) if which.isdecimal() else which
    saved, _ = checkpoint.chosen(run / "ckpt", choice)
    assert saved.step == step
    whole = checkpoint.load(run / "ckpt" / f"step-{step:07d}")
    assert all(torch.equal(saved.values[name], whole.values[name]) for name in whole.values)


@pytest.mark.parametrize(("which", "code"), [("7", 5), ("newest", 2), ("-1", 2), ("9" * 30, 2)])
def test_a_checkpoint_that_is_not_there_is_told(run: Path, which: str, code: int) -> None:
    refused = invoked("evaluate", run, "--checkpoint", which, "--no-progress")
    assert refused.exit_code == code, refused.output
    (run / "ckpt" / "BEST").unlink()
    assert invoked("evaluate", run, "--checkpoint", "best", "--no-progress").exit_code == 5


@pytest.mark.parametrize("schema", ["schema-1", "schema-2"])
def test_run_folders_of_every_schema_load_for_ever(tmp_path: Path, schema: str) -> None:
    shutil.copytree(CORPUS / schema, tmp_path / "run")
    run = metaforge.load(tmp_path / "run")
    assert run.summary["steps"] == 5
    assert sorted(run.values)[0].startswith("model.")
    assert run.evaluate(tasks=2)["results"][0]["scores"]
    resumed = invoked("train", "--resume", tmp_path / "run", "--accept-plugins", "--set", "train.steps=7", "--json")
    if schema == "schema-1":
        assert resumed.exit_code == 5
        assert "without the state of the outer optimiser" in resumed.stderr
    else:
        assert resumed.exit_code == 0, resumed.stderr
        assert json.loads(resumed.stdout)["steps"] == 7
