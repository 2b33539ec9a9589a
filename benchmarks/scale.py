"""Speed and memory as a function of tasks per batch, inner steps, width and processes; one process per point."""

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
    """Yield the record of each scaled size; the other sizes are those of the case `stride` of `benchmarks.speed`."""
    for what, points in _POINTS.items():
        if not only or what in only:
            rows = [_measure_in_process(what, point, rounds) for point in points]
            yield what, {"title": f"{_TITLES[what]} (stride-2 Conv-4, MAML)", "rows": rows}
    if not only or "processes" in only:
        yield "processes", _processes(rounds)


def _measure_in_process(what: str, point: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", what, str(point), str(rounds)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(process.stdout)
    return measured


def _measure(what: str, point: int, rounds: int) -> dict[str, Any]:
    machine.prepare(None)
    work = replace(
        STRIDE, **({"options": {**STRIDE.options, "filters": point}} if what == "filters" else {what: point})
    )
    call, times = metaforge(work), []
    call()
    for _ in range(max(3, rounds)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    seconds = median(times)
    return {what: point, "ms a step": 1e3 * seconds, "tasks/s": work.tasks / seconds, "peak MiB": peak_mib()}


# Runs that are timed at the same time, (processes, tasks per step) of each, and the threads per process.
_RUNS: Mapping[str, tuple[tuple[tuple[int, int], ...], int]] = {
    "1 process": (((1, 16),), 1),
    "2 processes": (((2, 16),), 1),
    "1 process, 2 threads": (((1, 16),), 2),
    "2 runs of half the tasks": (((1, 8), (1, 8)), 1),
}


def _processes(rounds: int) -> dict[str, Any]:
    """Time `metaforge train` in one process, in two processes, with two threads, and as two independent runs."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in _RUNS}
    for _ in range(rounds):
        for name, (runs, threads) in _RUNS.items():
            with ThreadPoolExecutor() as pool:
                speeds, peaks = zip(*pool.map(_speed, *zip(*runs, strict=True), repeat(threads)), strict=True)
            measured[name].append((sum(speeds), max(peaks)))
    rows = []
    for name, measurements in measured.items():
        speeds, peaks = zip(*measurements, strict=True)
        ratios = [speed / slow for speed, (slow, _) in zip(speeds, measured["1 process"], strict=True)]
        row = {"who": name, "tasks/s": median(speeds), "ms a step": 16e3 / median(speeds)}
        rows.append(row | {"peak MiB of a process": round(median(peaks)), "times 1 process": median(ratios)})
    return {"title": "Processes (`metaforge train`, stride-2 Conv-4, MAML, 16 tasks)", "rows": rows}


def _speed(processes: int, tasks: int, threads: int) -> tuple[float, float]:
    """Return tasks per second, and the highest peak memory of a process in MiB."""
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
            raise SystemExit(f"{' '.join(command)} ended with exit code {running.returncode}.")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    # Without the steps before the first record, in which memory is mapped and threads are started.
    return tasks * (rows[-1]["step"] - rows[0]["step"]) / float(rows[-1]["elapsed"] - rows[0]["elapsed"]), peak


def _processes_of(folder: str) -> list[str]:
    """Return the ids of the processes whose command line names this run folder."""
    measured = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if folder in path.read_text("utf-8", "replace"):
                measured.append(path.parent.name)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("point", type=int)
    parser.add_argument("rounds", type=int)
    options = parser.parse_args()
    print(json.dumps(_measure(options.what, options.point, options.rounds)))  # noqa: T201
