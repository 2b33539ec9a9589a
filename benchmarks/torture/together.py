"""Rows about several processes that are one run: killed one at a time, and stopped at a step and going on."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import metaforge
from benchmarks.torture import children, small
from benchmarks.torture.rows import Measured, Room, row
from benchmarks.torture.stopping import StopAfter
from metaforge import checkpoint
from metaforge.registry import scan
from metaforge.resume import configuration
from metaforge.training import run_training

_FORKS = multiprocessing.get_context("forkserver")


def pair(function: str, *arguments: str, output: Path, seconds: float = 100.0) -> list[int]:
    """Call a function of this module in two processes, as torchrun would start them, and return their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        _FORKS.Process(target=_joined, args=(rank, port, function, arguments, f"{output}-{rank}")) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _joined(rank: int, port: int, function: str, arguments: Sequence[str], output: str) -> None:
    children._redirect(output)
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    # Imported here: the module of that row imports this one.
    from benchmarks.torture.unsound import train_in_two

    {"begin": begin, "resume": resume, "train_in_two": train_in_two}[function](*arguments)


def begin(out: str, learner: str, point: str) -> None:
    """Train a small run, which the leading process interrupts after a step (none where `point` is empty)."""
    values = small.settings(learner, steps=12)
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    name = values.pop("learner")["name"]
    hooks = [] if not point else [StopAfter(int(point))]
    metaforge.train(name, settings=values, out=out, hooks=hooks)


def resume(out: str) -> None:
    """Go on with a run, which must be exact."""
    registry = scan()
    run = run_training(configuration(Path(out), [], registry), registry, folder=Path(out), resuming=True)
    if not run.summary["resumed"]["exact"]:
        raise RuntimeError(str(run.summary["resumed"]))


@row(
    3,
    "resume at 6 points of every built-in learner's run, by one process and by two",
    goal="weights, optimiser, metrics files and hooks' states equal with tolerance 0",
)
def resume_points(
    room: Room,
    *,
    points: Sequence[int] = (0, 1, 4, 6, 9, 11),
    learners: Sequence[str] = (*small.LEARNERS,),
    processes: Sequence[int] = (1, 2),
) -> Measured:
    """Stop a run of 12 steps after each of the points, go on with it, and compare with the one that nobody stopped."""
    wrong, done = [], 0
    cases = [(count, learner, point) for count in processes for learner in learners for point in points]
    wholes: dict[tuple[int, str], str] = {}
    for index in room.counted(len(cases)):
        count, learner, point = cases[index]
        stopped_at = _alone if count == 1 else _together
        if (count, learner) not in wholes:
            wholes[count, learner] = stopped_at(room.folder / f"{learner}-{count}-whole", learner, None)
        if stopped_at(room.folder / f"{learner}-{count}-{point}", learner, point) != wholes[count, learner]:
            wrong.append(f"{learner} after step {point}, {count} processes")
        done += 1
    counts = " and ".join(map(str, processes))
    text = f"{done - len(wrong)} of {len(cases)} are equal to the bit ({len(learners)} learners, {counts} processes)"
    return Measured(done == len(cases) and not wrong, text, {"points": list(points), "wrong": wrong})


def _alone(out: Path, learner: str, point: int | None) -> str:
    """Return the digest of a run of 12 steps that was stopped after a step, if any, and has gone on."""
    try:
        begin(str(out), learner, "" if point is None else str(point))
    except KeyboardInterrupt:
        resume(str(out))
    return small.digest(out)


def _together(out: Path, learner: str, point: int | None) -> str:
    """Return the same of a run of two processes; when the leading one stops, the other must end too."""
    said = out.with_name(f"{out.name}.said")
    codes = pair("begin", str(out), learner, "" if point is None else str(point), output=said)
    if point is not None:
        if 0 in codes:
            raise RuntimeError(f"{out.name} should have been stopped: exit codes {codes}")
        codes = pair("resume", str(out), output=said)
    if codes != [0, 0]:
        raise RuntimeError(f"{out.name} has failed: {codes}: {Path(f'{said}-0').read_text('utf-8')[-300:]}")
    return small.digest(out)


@row(
    10,
    "each of two processes killed at 10 steps, started again by the launcher",
    goal="20 of 20 finish with the weights of the undisturbed run to the bit, none hangs; recovery median at most 15 s",
)
def killed_processes(room: Room, *, kills: int = 10, steps: int = 120) -> Measured:
    """Kill process 0 and process 1 at different steps of runs of the real command, and wait for the end."""
    values = small.settings("maml", steps=steps) | {"checkpoint": {"every": 1, "keep": 2}}
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    values["train"] = {**values["train"], "tasks": 4}
    file = small.write_run_file(room.folder / "run.toml", values)
    whole = room.folder / "whole"
    code, said = children.finish(["train", "--config", str(file), "--out", str(whole)], room.folder / "said.txt")
    if code:
        raise RuntimeError(said[-300:])
    expected, wrong, recoveries = small.digest(whole), [], []
    cases = [(rank, 5 + index * (steps - 20) // max(1, kills)) for index in range(kills) for rank in (0, 1)]
    for index in room.counted(len(cases)):
        rank, step = cases[index]
        out = room.folder / f"killed-{rank}-{step}"
        complaint, seconds = _killed(file, out, rank, step)
        if not complaint and small.digest(out) != expected:
            complaint = "it came to something else"
        wrong += [f"process {rank} at step {step}: {complaint}"] if complaint else []
        recoveries.append(seconds)
        shutil.rmtree(out, ignore_errors=True)
    median = statistics.median(recoveries) if recoveries else float("inf")
    text = (
        f"{len(recoveries) - len(wrong)} of {len(cases)} finished equal to the bit, none hung; from the kill to the end"
        f" of the run {median:.1f} s (median), {max(recoveries, default=0):.1f} s at most"
    )
    passed = len(recoveries) == len(cases) and not wrong and median <= 15
    return Measured(passed, text, {"seconds": [round(one, 1) for one in recoveries], "wrong": wrong})


def _killed(file: Path, out: Path, rank: int, step: int) -> tuple[str, float]:
    """Return what is wrong with a run one of whose processes is killed, and the seconds from the kill to its end."""
    words = ["train", "--config", str(file), "--out", str(out), "--nproc", "2", "--max-restarts", "1", "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "metaforge", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        end = time.monotonic() + 60
        while not any(found >= step for found in checkpoint.steps(out / "ckpt")):
            if process.poll() is not None or time.monotonic() > end:
                return f"it did not come to step {step}", 0.0
            time.sleep(0.002)
        os.kill(_worker(out, rank), signal.SIGKILL)
        begun = time.monotonic()
        _, said = process.communicate(timeout=100)
    except (subprocess.TimeoutExpired, ProcessLookupError) as error:
        return f"{type(error).__name__}: {error}", 0.0
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - begun
    text = said.decode(errors="replace")
    if process.returncode or "resumed after outer step" not in text:
        return f"exit code {process.returncode}: {text[-200:]}", seconds
    return "", seconds


def _worker(out: Path, rank: int) -> int:
    """Return the process that has this number in the run of a folder."""
    for entry in Path("/proc").iterdir():
        try:
            words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdecimal() and str(out).encode() in words and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise ProcessLookupError(f"there is no process {rank}")
