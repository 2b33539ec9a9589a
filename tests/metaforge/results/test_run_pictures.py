"""Which pictures are drawn for a run."""

from __future__ import annotations

from pathlib import Path

from fake_runs import FakeRun, regression_run
from metaforge.results.run_pictures import draw
from pictures import colours
from run_folders import run_evaluation, write_metrics


def test_training_scores_steps_and_tasks_are_drawn(tmp_path: Path) -> None:
    for run, last in ((FakeRun(tmp_path / "a"), "episode-test"), (regression_run(tmp_path / "b"), "fits-test")):
        assert run.folder is not None
        run_evaluation(run)
        write_metrics(run.folder / "metrics.jsonl", 5)
        drawn = draw(run, split="test")
        ways = run.resolved.run.task.ways
        shots = run.resolved.run.task.shots
        assert [path.stem for path in drawn] == ["training", f"scores-test-{ways}w{shots}s", "steps-test", last]
        for path in drawn:
            colours(path)


def test_without_training_or_evaluation_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw(FakeRun(tmp_path), split="test") == []
    assert draw(FakeRun(None), split="test") == []
