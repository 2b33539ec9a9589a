"""A short selection of the reliability campaign: the functions of `tests.reliability`, with small counts."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaforge.runs import checkpoint
from tests.reliability import __main__ as campaign
from tests.reliability import (
    bad_numbers,
    checkpoints,
    compiled_runs,
    full_disks,
    fuzzed_folders,
    hostile_runs,
    interruptions,
    processes,
    rows,
    shared_folders,
    small_runs,
    steady_state,
)
from tests.reliability.rows import Measured, Workspace

SHORT: dict[int, Callable[[Workspace], Measured]] = {
    1: lambda workspace: checkpoints.kill_points(workspace, every=11),
    2: lambda workspace: interruptions.random_kills(workspace, kills=1, learners=["maml"], steps=8),
    3: lambda workspace: processes.resume_points(workspace, points=(4,), learners=("reptile",)),
    4: lambda workspace: checkpoints.damaged(workspace, count=60, resumes=1),
    5: lambda workspace: full_disks.full_storage(workspace, limits=1),
    6: lambda workspace: interruptions.signals(workspace, times=1, second=1, other_places=False, processes=(1,)),
    7: lambda workspace: bad_numbers.places(workspace, learners=("protonet",), steps=25),
    8: lambda workspace: interruptions.determinism(workspace, learners=("maml",), shared=()),
    10: lambda workspace: processes.killed_processes(workspace, kills=1, steps=24, ranks=(0,)),
    17: lambda workspace: shared_folders.concurrent(workspace, processes=2, rounds=2),
    18: lambda workspace: hostile_runs.malicious(
        workspace, cases=("manifest with a size of 10^30 for tensors", "run.lock that is a symbolic link")
    ),
    23: steady_state.corpus,
    24: lambda workspace: steady_state.soak(workspace, steps=100),
    27: lambda workspace: checkpoints.overhead(workspace, saves=2),
    28: lambda workspace: fuzzed_folders.fuzzed(workspace, count=30),
    37: lambda workspace: compiled_runs.compiled_runs(
        workspace, times=1, learners=("maml",), stop_signals=(signal.SIGKILL,), steps=60, fresh=False
    ),
}

# Rows whose short form is in another test file.
ELSEWHERE = dict.fromkeys((11, 12, 13, 14, 15, 16, 22), "tests/attacks/test_data.py")
ELSEWHERE |= {19: "tests/architecture/test_rooms.py", 20: "tests/thirdparty/test_hostile.py"}
ELSEWHERE |= {25: "tests/architecture/test_laziness.py", 34: "tests/metaforge/runs/test_worker.py"}
ELSEWHERE |= {35: "tests/metaforge/system/test_streams.py", 36: "tests/metaforge/runs/test_state.py"}


@pytest.mark.parametrize("number", SHORT)
def test_a_row_with_small_counts(number: int, tmp_path: Path) -> None:
    measured = SHORT[number](Workspace(tmp_path))
    assert measured.passed, f"{measured.text}\n{measured.numbers}"


def test_every_row_has_a_short_form() -> None:
    campaign.import_rows()
    assert all((steady_state.ROOT / path).exists() for path in ELSEWHERE.values())
    assert sorted([*SHORT, *ELSEWHERE]) == sorted(rows.ROWS)


def test_a_case_of_a_hostile_run_changes_its_folder(tmp_path: Path) -> None:
    small_run = Path(__file__).parents[1] / "corpus" / "checkpoints" / "schema-2"
    assert len(hostile_runs.CASES) >= 20
    for name in ("manifest with ../", "a newer schema", "ckpt that is a symbolic link", "values of another shape"):
        run = tmp_path / name.replace("/", "")
        shutil.copytree(small_run, run)
        (run / "ckpt" / "step-0000005").rename(run / "ckpt" / "step-0000004")
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        hostile_runs.CASES[name][0](run, tmp_path / "canary")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} != before


def test_a_row_fails_when_its_promise_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the comparison of digests, damaged checkpoints would be loaded.
    monkeypatch.setattr("metaforge.runs.checkpoint.verified_files", unverified)
    measured = checkpoints.damaged(Workspace(tmp_path), count=20, resumes=0)
    assert not measured.passed
    assert any("it was loaded" in failure for failure in measured.numbers["wrong"])


def unverified(path: Path) -> Any:
    names = ("model.safetensors", "train.safetensors", "state.json")
    return [(name, (path / name).read_bytes()) for name in names]


def test_the_digest_covers_values_optimiser_metrics_and_hooks(tmp_path: Path) -> None:
    saved = checkpoint.save(
        tmp_path / "ckpt", 4, checkpoints.state(4).values, checkpoints.state(4).training, facts_of(waited=1)
    )
    seen = {small_runs.digest(tmp_path)}
    for values, training, facts in (
        (checkpoints.state(5).values, checkpoints.state(4).training, facts_of(waited=1)),
        (checkpoints.state(4).values, checkpoints.state(5).training, facts_of(waited=1)),
        (checkpoints.state(4).values, checkpoints.state(4).training, facts_of(waited=2)),
    ):
        shutil.rmtree(saved)
        checkpoint.save(tmp_path / "ckpt", 4, values, training, facts)
        seen.add(small_runs.digest(tmp_path))
    for line in ({"step": 1, "loss": 1.0}, {"step": 1, "loss": 2.0}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line | {"elapsed": 1.0}) + "\n")
        seen.add(small_runs.digest(tmp_path))
    assert len(seen) == 6
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "elapsed": 9.0}) + "\n")
    assert small_runs.digest(tmp_path) in seen


def facts_of(*, waited: int) -> dict[str, Any]:
    facts = {"window": {}, "norms": [], "skipped": [], "best": None, "best_step": None}
    return {**facts, "hooks": {"early-stop": {"waited": waited}}}


def test_a_row_that_raises_or_runs_out_of_time_has_not_passed(tmp_path: Path) -> None:
    def raises(workspace: Workspace) -> Measured:
        raise ValueError("broken")

    record = rows.run_row(rows.Row(99, "test", "goal", raises), Workspace(tmp_path), "command")
    assert (record["passed"], record["measured"]["text"]) == (False, "ValueError: broken")
    assert record["machine"]["torch"]
    out_of_time = checkpoints.kill_points(Workspace(tmp_path, deadline=0.0))
    assert not out_of_time.passed


def test_two_functions_cannot_be_the_same_row() -> None:
    with pytest.raises(ValueError, match="two functions are row 1"):
        rows.row(1, "again", goal="")(lambda workspace: Measured(True, ""))


def test_every_row_has_its_record() -> None:
    campaign.import_rows()
    recorded = {record["row"]: record["test"] for record in rows.read_records()}
    assert recorded == {number: one.test for number, one in rows.ROWS.items()}, "make torture"


def test_the_campaign_repeats_what_has_not_passed_and_fails_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "TABLE", tmp_path / "reliability.md")
    monkeypatch.setattr(rows, "RECORDS", tmp_path)
    monkeypatch.setattr(campaign, "RECORDS", tmp_path)
    answers = iter([False, True])
    monkeypatch.setattr(
        campaign, "ROWS", {n: rows.Row(n, "test", "goal", lambda workspace: Measured(True, "")) for n in (1, 2)}
    )
    campaign.ROWS[1] = rows.Row(1, "test", "goal", lambda workspace: Measured(next(answers), ""))
    assert campaign.main(["--row", "1"]) == 1
    assert campaign.main(["--table"]) == 1
    assert campaign.main(["--row", "1", "--row", "2"]) == 0
    assert campaign.main([]) == 0
    assert next(answers, None) is None


def test_the_table_is_that_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (steady_state.ROOT / "docs" / "reliability.md").read_text("utf-8")
    monkeypatch.setattr(campaign, "TABLE", tmp_path / "reliability.md")
    campaign.main(["--table"])
    assert (tmp_path / "reliability.md").read_text("utf-8") == page, (
        "make torture, or python -m tests.reliability --table"
    )
