"""Every learner of MetaForge's own trains, is loaded and evaluated with its own defaults, on small data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import metaforge
from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan

REGISTRY = scan()
LEARNERS = [entry.name for entry in REGISTRY.entries("learner") if entry.distribution == CORE]
# As many characters, and images of each, as any learner's own defaults put into one training task.
GLYPHS = {"name": "glyphs", "train": 60, "val": 5, "test": 10, "writers": 16}
SETTINGS = {"engine": {"threads": 1}, "train": {"log_every": 1}, "task": {"queries": 5}}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_trains_and_is_evaluated_with_its_own_defaults(name: str, tmp_path: Path) -> None:
    dataset: Any = GLYPHS if "classification" in REGISTRY.load("learner", name).tags.kinds else "sinusoid"
    out = tmp_path / "run"
    run = metaforge.train(name, dataset, steps=2, tasks=2, settings=SETTINGS, out=out, registry=REGISTRY)
    assert run.summary["steps"] == 2
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["score"]) for row in rows)
    (found,) = metaforge.load(out, registry=REGISTRY).evaluate(tasks=3)["results"]
    figures = [*found["scores"], *found["measures"].values()]
    assert all(math.isfinite(figure["mean"]) for figure in figures)
    report = (out / "report.md").read_text()
    assert name in report
    assert "3 tasks of the test split" in report
