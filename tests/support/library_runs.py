"""Trainings of one step in float64 with a network of another library, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import metaforge


def trained(
    out: Path, backbone: str | Mapping[str, Any], plan: str = "loop", steps: int = 1, verify: str = "off"
) -> Any:
    """Return a run of a prototypical network on glyphs of 32 pixels."""
    settings = {
        "engine": {"threads": 1, "dtype": "float64", "plan": plan, "verify": verify},
        "evaluate": {"tasks": 2},
        "task": {"ways": 2, "queries": 2},
        "train": {"ways": 2, "queries": 2, "validate_every": 0},
    }
    dataset = {"name": "glyphs", "size": 32, "train": 8, "val": 4, "test": 4}
    return metaforge.train(
        "protonet", dataset, backbone=backbone, optimizer="sgd", steps=steps, tasks=2, settings=settings, out=out
    )


def assert_equal_runs(folder: Path, backbone: str, *plans: str) -> None:
    """Fail unless a step of training changes the values, by each plan as in a loop over the tasks."""
    looped = trained(folder / "loop", backbone)
    start = trained(folder / "start", backbone, steps=0)
    assert any(not torch.equal(value, start.values[name]) for name, value in looped.values.items())
    for plan in plans:
        run = trained(folder / plan, backbone, plan)
        assert json.loads((run.folder / "env.json").read_text("utf-8"))["plan"] == plan
        for name, value in looped.values.items():
            torch.testing.assert_close(run.values[name], value, rtol=1e-9, atol=1e-9, msg=f"{plan}: {name}")
