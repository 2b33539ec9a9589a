"""Speed and memory against tasks per batch, inner steps, width and processes; each point in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contestants import metaforge
from benchmarks.speed import STRIDE
from benchmarks.timing import median
from metaforge import runtime

_POINTS = {
    "tasks": (1, 4, 16, 64),
    "steps": (1, 5, 10),
    "filters": (16, 32, 64, 128),
}
_TITLES = {"tasks": "Tasks per batch", "steps": "Inner steps", "filters": "Width"}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a table for each thing that is scaled, around the stride-2 Conv-4 with 16 tasks and one step."""
    for what, points in _POINTS.items():
        if not only or what in only:
            rows = [_apart(what, point, rounds) for point in points]
            yield what, {"title": f"{_TITLES[what]} (stride-2 Conv-4, MAML)", "rows": rows}
    if not only or "processes" in only:
        yield "processes", _processes(rounds)


def _apart(what: str, point: int, rounds: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.scale", what, str(point), str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(what: str, point: int, rounds: int) -> dict[str, Any]:
    runtime.prepare(None)
    work = replace(
        STRIDE, **({"options": {**STRIDE.options, "filters": point}} if what == "filters" else {what: point})
    )
    call, times = metaforge(work), []
    call()
    for _ in range(max(3, rounds)):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {what: point, "ms a step": 1e3 * median(times), "tasks/s": work.tasks / median(times), "peak MiB": memory}


def _processes(rounds: int) -> dict[str, Any]:
    """Time the real command with one thread in one process, one thread in each of two, and two threads in one."""
    runs: dict[tuple[int, int], list[float]] = {(1, 1): [], (2, 1): [], (1, 2): []}
    for _ in range(rounds):
        for processes, threads in runs:
            runs[processes, threads].append(_speed(processes, threads))
    slow = runs[1, 1]
    rows = []
    for (processes, threads), found in runs.items():
        times = [a / b for a, b in zip(found, slow, strict=True)]
        row = {"processes": processes, "threads in each": threads, "tasks/s": median(found)}
        rows.append(row | {"times one process of one thread": median(times)})
    goal = "Goal: two processes at least 1.7 times one process of one thread."
    return {"title": "Processes (`metaforge train`, stride-2 Conv-4, MAML, 16 tasks)", "rows": rows, "notes": [goal]}


def _speed(processes: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = "train --learner maml --dataset glyphs --set dataset.train=60 --set backbone.variant=stride --steps 60"
        words += f" --set train.tasks=16 --set train.log_every=20 --no-progress --nproc {processes} --out {folder}/run"
        command = [sys.executable, "-m", "metaforge", *words.split(), "--set", f"engine.threads={threads}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    # Without the steps until the first record, in which memory is mapped and threads are started.
    return 16 * (rows[-1]["step"] - rows[0]["step"]) / float(rows[-1]["elapsed"] - rows[0]["elapsed"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("point", type=int)
    parser.add_argument("rounds", type=int)
    given = parser.parse_args()
    print(json.dumps(_measure(given.what, given.point, given.rounds)))  # noqa: T201
