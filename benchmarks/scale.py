"""Speed and memory against tasks per batch, inner steps, width and processes; each point in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.contestants import metaforge
from benchmarks.memory import peak_mib
from benchmarks.speed import STRIDE
from benchmarks.timing import median
from metaforge.system import machine

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
    machine.prepare(None)
    work = replace(
        STRIDE, **({"options": {**STRIDE.options, "filters": point}} if what == "filters" else {what: point})
    )
    call, times = metaforge(work), []
    call()
    for _ in range(max(3, rounds)):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    seconds = median(times)
    return {what: point, "ms a step": 1e3 * seconds, "tasks/s": work.tasks / seconds, "peak MiB": peak_mib()}


# What is run at the same time, (processes, tasks a step) of each, and the threads of a process.
_WAYS: Mapping[str, tuple[tuple[tuple[int, int], ...], int]] = {
    "1 process": (((1, 16),), 1),
    "2 processes": (((2, 16),), 1),
    "1 process, 2 threads": (((1, 16),), 2),
    "2 runs of half the tasks": (((1, 8), (1, 8)), 1),
}


def _processes(rounds: int) -> dict[str, Any]:
    """Time the real command with one thread in one process, one thread in each of two, and two threads in one."""
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in _WAYS}
    for _ in range(rounds):
        for who, (runs, threads) in _WAYS.items():
            with ThreadPoolExecutor() as pool:
                speeds, peaks = zip(*pool.map(_speed, *zip(*runs, strict=True), repeat(threads)), strict=True)
            found[who].append((sum(speeds), max(peaks)))
    rows = []
    for who, figures in found.items():
        speeds, peaks = zip(*figures, strict=True)
        ratios = [speed / slow for speed, (slow, _) in zip(speeds, found["1 process"], strict=True)]
        row = {"who": who, "tasks/s": median(speeds), "ms a step": 16e3 / median(speeds)}
        rows.append(row | {"peak MiB of a process": round(median(peaks)), "times 1 process": median(ratios)})
    notes = [
        "Goal: two processes at least 1.7 times one, each of one thread.",
        "The last row is what this machine's second core can give: two runs that know nothing of one another, their"
        " tasks added up.",
    ]
    return {"title": "Processes (`metaforge train`, stride-2 Conv-4, MAML, 16 tasks)", "rows": rows, "notes": notes}


def _speed(processes: int, tasks: int, threads: int) -> tuple[float, float]:
    """Return (tasks/s, the most memory in MiB that a process of the run held)."""
    with tempfile.TemporaryDirectory() as folder:
        words = "train --learner maml --dataset glyphs --set dataset.train=60 --set backbone.variant=stride --steps 60"
        words += f" --set train.tasks={tasks} --set train.log_every=20 --no-progress --nproc {processes}"
        words += f" --out {folder}/run"
        command = [sys.executable, "-m", "metaforge", *words.split(), "--set", f"engine.threads={threads}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        peak = 0.0
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as running:
            while running.poll() is None:
                for process in _processes_of(folder):
                    with suppress(OSError, ValueError):
                        peak = max(peak, peak_mib(process))
                time.sleep(0.2)
        if running.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {running.returncode}.")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    # Without the steps until the first record, in which memory is mapped and threads are started.
    return tasks * (rows[-1]["step"] - rows[0]["step"]) / float(rows[-1]["elapsed"] - rows[0]["elapsed"]), peak


def _processes_of(folder: str) -> list[str]:
    """Return the numbers of the processes that were started with this run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if folder in path.read_text("utf-8", "replace"):
                found.append(path.parent.name)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("point", type=int)
    parser.add_argument("rounds", type=int)
    given = parser.parse_args()
    print(json.dumps(_measure(given.what, given.point, given.rounds)))  # noqa: T201
