"""Evaluations and run folders of the toy runs in `fake_runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_runs import FakeRun
from metaforge.results.evaluate import evaluate_run

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "platform": "Linux",
    "processor": "x86_64",
    "threads": 2,
    "cuda": False,
    "plugins": {"learner reader": "somebody 1.0"},
    "git_commit": "abc",
}


def run_evaluation(run: FakeRun, **changes: Any) -> dict[str, Any]:
    """Evaluate a run on 8 tasks, or with other settings."""
    settings: dict[str, Any] = {"shots": None, "steps": None, "tasks": 8, "split": "test", "seed": 7}
    return evaluate_run(run, **{**settings, **changes})


def run_folder(folder: Path, run: FakeRun | None = None, **changes: Any) -> dict[str, Any]:
    """Write a run folder as training and evaluation do; return the summary of the evaluation."""
    folder.mkdir(parents=True)
    run = run or FakeRun(folder)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "training.png").write_bytes(b"png")
    (folder / "config.toml").write_text('seed = 3\n[learner]\nname = "reader"\n[dataset]\nname = "pixels"\nside = 4\n')
    (folder / "command.txt").write_text("metaforge train --learner reader --seed 3\n")
    (folder / "env.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "status.json").write_text(json.dumps({"outcome": "finished", "steps": 400, "seconds": 83.4}))
    (folder / "metrics.jsonl").write_text('{"step": 400, "loss": 0.1234, "score": 0.91, "score_ci": 0.012}\n')
    return run_evaluation(run, **{"shots": [1, 3], **changes})


def write_metrics(path: Path, count: int, **more: float) -> None:
    """Write a metrics file with `count` records, of a training that improves."""
    rows = [
        {"step": 20 * (i + 1), "loss": 2.0 / (i + 1), "score": 1 - 0.8 / (i + 1), "score_ci": 0.01, **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
