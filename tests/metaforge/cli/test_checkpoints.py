"""`metaforge ckpt`: what it shows, refuses and removes; run folders of older versions can be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import metaforge
from metaforge.cli.app import app
from metaforge.runs import checkpoint
from metaforge.system.lock import RunLock

CORPUS = Path(__file__).parents[2] / "corpus" / "checkpoints"


def invoked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_show_lists_steps_sizes_and_the_best(saved_run: Path) -> None:
    found = json.loads(invoked("ckpt", "show", saved_run, "--json").stdout)["checkpoints"]
    assert [(one["step"], one["best"], one["valid"]) for one in found] == [
        (6, False, True),
        (5, False, True),
        (4, True, True),
        (3, False, True),
    ]
    files = (saved_run / "ckpt" / "step-0000006").iterdir()
    assert found[0]["bytes"] == sum(file.stat().st_size for file in files)
    assert "best  valid" in invoked("ckpt", "show", saved_run).stdout


def test_verify_names_damaged_files(saved_run: Path) -> None:
    assert invoked("ckpt", "verify", saved_run).exit_code == 0
    (saved_run / "ckpt" / "step-0000006" / "state.json").write_bytes(b"{}")
    refused = invoked("ckpt", "verify", saved_run, "--json")
    assert refused.exit_code == 5
    assert "1 of 4 checkpoints cannot be used. The checkpoint file state.json" in refused.stderr
    assert [one["valid"] for one in json.loads(refused.stdout)["checkpoints"]] == [False, True, True, True]
    assert invoked("ckpt", "show", saved_run).exit_code == 0


def test_a_run_without_a_checkpoint_is_not_verified(saved_run: Path) -> None:
    shutil.rmtree(saved_run / "ckpt")
    refused = invoked("ckpt", "verify", saved_run)
    assert (refused.exit_code, "There is no checkpoint" in refused.stderr) == (5, True)
    assert invoked("ckpt", "show", saved_run).exit_code == 0


def test_prune_keeps_the_last_and_the_best(saved_run: Path) -> None:
    (saved_run / "ckpt" / ".step-0000009.1-ab.part").mkdir()
    done = invoked("ckpt", "prune", saved_run, "--keep", "1", "--json")
    assert json.loads(done.stdout)["removed"] == ["step-0000005", "step-0000003"]
    assert sorted(path.name for path in (saved_run / "ckpt").iterdir()) == [
        "BEST",
        "LATEST",
        "step-0000004",
        "step-0000006",
    ]
    assert "removed: none" in invoked("ckpt", "prune", saved_run).stdout


def test_a_run_that_is_being_trained_is_not_pruned(saved_run: Path) -> None:
    lock = RunLock(saved_run)
    refused = invoked("ckpt", "prune", saved_run)
    lock.release()
    assert refused.exit_code == 7
    assert checkpoint.steps(saved_run / "ckpt") == [6, 5, 4, 3]


@pytest.mark.parametrize("command", ["show", "verify", "prune"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str) -> None:
    assert invoked("ckpt", command, tmp_path).exit_code == 2
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "ckpt").symlink_to(tmp_path)
    refused = invoked("ckpt", command, tmp_path)
    assert refused.exit_code == 2
    assert "is a symbolic link" in refused.stderr


@pytest.mark.parametrize("schema", ["schema-1", "schema-2"])
def test_run_folders_of_every_schema_can_be_loaded(tmp_path: Path, schema: str) -> None:
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
