"""Every built-in learner can be trained, loaded and evaluated with its default settings, on small data."""

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
# Enough characters, and images of each, for a training task with the default settings of any learner.
GLYPHS = {"name": "glyphs", "train": 100, "val": 5, "test": 10, "writers": 16}
SETTINGS = {"engine": {"threads": 1}, "train": {"log_every": 1}, "task": {"queries": 5}}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_trains_and_is_evaluated_with_its_defaults(name: str, tmp_path: Path) -> None:
    dataset: Any = GLYPHS if "classification" in REGISTRY.load("learner", name).tags.kinds else "sinusoid"
    out = tmp_path / "run"
    run = metaforge.train(name, dataset, steps=2, tasks=2, settings=SETTINGS, out=out, registry=REGISTRY)
    assert run.summary["steps"] == 2
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["score"]) for row in rows)
    (result,) = metaforge.load(out, registry=REGISTRY).evaluate(tasks=3)["results"]
    statistics = [*result["scores"], *result["measures"].values()]
    assert all(math.isfinite(entry["mean"]) for entry in statistics)
    report = (out / "report.md").read_text()
    assert name in report
    assert "3 tasks of the test split" in report
