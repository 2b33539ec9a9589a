"""Short trainings of a few steps, and what they record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import metaforge
from metaforge import hookimpl

QUICK: dict[str, Any] = {
    "dataset": {"name": "sinusoid"},
    "steps": 6,
    "tasks": 3,
    "settings": {"train": {"log_every": 2}, "engine": {"threads": 1}, "evaluate": {"tasks": 20}},
}


def trained(out: Path, **more: Any) -> Any:
    return metaforge.train("maml", **{**QUICK, **more}, out=out)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Watch:
    """Notes every hook that is called."""

    def __init__(self, stop_at: int | None = None, fail_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at, self.fail_at = stop_at, fail_at

    @hookimpl
    def metaforge_run_start(self) -> None:
        self.seen.append("start")

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append(f"step {step}")
        assert metrics["loss"] > 0
        if step == self.fail_at:
            raise RuntimeError("a hook broke")

    @hookimpl
    def metaforge_after_eval(self, split: str) -> None:
        self.seen.append(f"eval {split}")

    @hookimpl
    def metaforge_should_stop(self, step: int) -> bool | None:
        return step == self.stop_at or None

    @hookimpl
    def metaforge_checkpoint(self, step: int) -> None:
        self.seen.append(f"saved {step}")

    @hookimpl
    def metaforge_run_end(self, outcome: str) -> None:
        self.seen.append(outcome)
