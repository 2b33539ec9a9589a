"""Rows about several processes that are one run: killed one at a time, and stopped at a step and going on."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import metaforge
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from tests.reliability import children, small_runs
from tests.reliability.interruptions import StopAfter
from tests.reliability.rows import Measured, Room, row

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
    from tests.reliability.bad_numbers import train_in_two

    {"begin": begin, "resume": resume, "train_in_two": train_in_two}[function](*arguments)


def begin(out: str, learner: str, point: str) -> None:
    """Train a small run, which the leading process interrupts after a step (none where `point` is empty)."""
    values = small_runs.settings(learner, steps=12)
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    name = values.pop("learner")["name"]
    hooks = [] if not point else [StopAfter(int(point))]
    metaforge.train(name, settings=values, out=out, hooks=hooks)


def resume(out: str) -> None:
    """Go on with a run, which must be exact."""
    registry = scan()
    run = run_training(configuration(Path(out), [], registry), folder=Path(out), resuming=True)
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
    learners: Sequence[str] = (*small_runs.LEARNERS,),
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
    return small_runs.digest(out)


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
    return small_runs.digest(out)


@row(
    10,
    "each of two processes killed at 10 steps, started again by the launcher",
    goal="20 of 20 finish with the weights of the undisturbed run to the bit, none hangs; recovery median at most 15 s",
)
def killed_processes(room: Room, *, kills: int = 10, steps: int = 120, ranks: Sequence[int] = (0, 1)) -> Measured:
    """Kill a process at different steps of runs of the real command, and wait for the end."""
    values = small_runs.settings("maml", steps=steps) | {"checkpoint": {"every": 1, "keep": 2}}
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    values["train"] = {**values["train"], "tasks": 4}
    file = small_runs.write_run_file(room.folder / "run.toml", values)
    whole = room.folder / "whole"
    code, said = children.finish(["train", "--config", str(file), "--out", str(whole)], room.folder / "said.txt")
    if code:
        raise RuntimeError(said[-300:])
    expected, wrong, found = small_runs.digest(whole), [], []
    cases = [(rank, 5 + index * (steps - 20) // max(1, kills)) for index in range(kills) for rank in ranks]
    for index in room.counted(len(cases)):
        rank, step = cases[index]
        out = room.folder / f"killed-{rank}-{step}"
        one = _killed(room, file, out, rank, step)
        if not one.complaint and small_runs.digest(out) != expected:
            one = one._replace(complaint="it came to something else")
        wrong += [f"process {rank} at step {step}: {one.complaint}"] if one.complaint else []
        found.append(one)
        shutil.rmtree(out, ignore_errors=True)
    # One that did not go on, or did not end, took for ever.
    on, ended = ([math.inf if one[place] is None else one[place] for one in found] or [math.inf] for place in (2, 3))
    hung = sum(one.hung for one in found)
    text = (
        f"{len(found) - len(wrong)} of {len(cases)} finished equal to the bit, {hung or 'none'} hung; from the kill to"
        f" the next step {statistics.median(on):.1f} s (median), {max(on):.1f} s at most, to the end of the run"
        f" {statistics.median(ended):.1f} s (median)"
    )
    passed = len(found) == len(cases) and not wrong and not hung and statistics.median(on) <= 15
    seconds = [[None if time is None else round(time, 1) for time in one[2:]] for one in found]
    return Measured(passed, text, {"seconds to go on, to end": seconds, "wrong": wrong})


class _Killing(NamedTuple):
    """What is wrong with a run one of whose processes was killed, whether it hung, and how long it took from then."""

    complaint: str
    hung: bool = False
    to_go_on: float | None = None
    to_end: float | None = None


def _killed(room: Room, file: Path, out: Path, rank: int, step: int) -> _Killing:
    """Kill a process after a step, and return what came of its run."""
    words = ["train", "--config", str(file), "--out", str(out), "--nproc", "2", "--max-restarts", "1", "--no-progress"]

    def saved() -> int:
        return max(checkpoint.steps(out / "ckpt"), default=0)

    def goes_on() -> bool:
        told = re.search(r"resumed after outer step (\d+)", child.said())
        return told is not None and saved() > int(told[1])

    with children.running(words, room.folder / "said.txt", fresh=True) as child:
        if not child.wait_for(lambda: saved() >= step):
            return _Killing(f"it did not come to step {step}: {child.said()[-200:]}")
        try:
            os.kill(children.worker(out, rank), signal.SIGKILL)
            begun = time.monotonic()
            if not child.wait_for(goes_on):
                return _Killing(f"it did not go on: {child.said()[-200:]}", hung=child.code is None)
            to_go_on = time.monotonic() - begun
            code = child.wait()
        except TimeoutError as error:
            return _Killing(str(error), hung=True)
        except ProcessLookupError as error:
            return _Killing(str(error))
        finally:
            _kill_all(out)
    complaint = f"exit code {code}: {child.said()[-200:]}" if code else ""
    return _Killing(complaint, False, to_go_on, time.monotonic() - begun)


def _kill_all(out: Path) -> None:
    """Kill both processes of a run, which outlive a launcher that is killed."""
    for rank in (0, 1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(children.worker(out, rank), signal.SIGKILL)
