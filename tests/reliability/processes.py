"""Rows about runs of one and of two processes: interrupted after a step and resumed, and one rank killed."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import metaforge
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from tests.reliability import children, small_runs
from tests.reliability.interruptions import StopAfter
from tests.reliability.rows import Measured, Workspace, row
from tests.reliability.two_processes import call_in_two


def train(out: str, learner: str, point: str) -> None:
    """Train a small run; rank 0 interrupts it after step `point`, unless that is empty."""
    values = small_runs.settings(learner, steps=12)
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    name = values.pop("learner")["name"]
    hooks = [] if not point else [StopAfter(int(point))]
    metaforge.train(name, settings=values, out=out, hooks=hooks)


def resume(out: str) -> None:
    """Resume a run; raise `RuntimeError` if the resume is marked inexact."""
    registry = scan()
    run = run_training(configuration(Path(out), [], registry), folder=Path(out), resuming=True)
    if not run.summary["resumed"]["exact"]:
        raise RuntimeError(str(run.summary["resumed"]))


@row(
    3,
    "a run of every built-in learner, interrupted after 6 different steps and resumed, in one process and in two",
    goal="values, optimiser state, metrics files and hook states equal with tolerance 0",
)
def resume_points(
    workspace: Workspace,
    *,
    points: Sequence[int] = (0, 1, 4, 6, 9, 11),
    learners: Sequence[str] = (*small_runs.LEARNERS,),
    processes: Sequence[int] = (1, 2),
) -> Measured:
    """Interrupt a run of 12 steps after each of the points, resume it, and compare it with an uninterrupted run."""
    failures, done = [], 0
    cases = [(count, learner, point) for count in processes for learner in learners for point in points]
    digests: dict[tuple[int, str], str] = {}
    for index in workspace.indices(len(cases)):
        count, learner, point = cases[index]
        run_in = _run_in_one if count == 1 else _run_in_two
        if (count, learner) not in digests:
            digests[count, learner] = run_in(workspace.folder / f"{learner}-{count}-whole", learner, None)
        if run_in(workspace.folder / f"{learner}-{count}-{point}", learner, point) != digests[count, learner]:
            failures.append(f"{learner} after step {point}, {count} processes")
        done += 1
    counts = " and ".join(map(str, processes))
    text = (
        f"{done - len(failures)} of {len(cases)} are equal bit for bit ({len(learners)} learners, {counts} processes)"
    )
    return Measured(done == len(cases) and not failures, text, {"points": list(points), "wrong": failures})


def _run_in_one(out: Path, learner: str, point: int | None) -> str:
    """Return the digest of a run of 12 steps in this process, interrupted after a step (if any) and resumed."""
    try:
        train(str(out), learner, "" if point is None else str(point))
    except KeyboardInterrupt:
        resume(str(out))
    return small_runs.digest(out)


def _run_in_two(out: Path, learner: str, point: int | None) -> str:
    """Return the same for a run of two processes; when rank 0 is interrupted, rank 1 must end too."""
    log = out.with_name(f"{out.name}.output")
    codes = call_in_two(train, str(out), learner, "" if point is None else str(point), log=log)
    if point is not None:
        if 0 in codes:
            raise RuntimeError(f"{out.name} should have been interrupted: exit codes {codes}")
        codes = call_in_two(resume, str(out), log=log)
    if codes != [0, 0]:
        raise RuntimeError(f"{out.name} has failed: {codes}: {Path(f'{log}-0').read_text('utf-8')[-300:]}")
    return small_runs.digest(out)


@row(
    10,
    "each rank of a run of two processes killed at 10 different steps, and restarted by the launcher",
    goal="20 of 20 finish with the values of the uninterrupted run, bit for bit; none hangs; median recovery at most"
    " 15 s",
)
def killed_processes(
    workspace: Workspace, *, kills: int = 10, steps: int = 120, ranks: Sequence[int] = (0, 1)
) -> Measured:
    """Kill one rank of `metaforge train --nproc 2` at different steps, and wait until the run ends."""
    values = small_runs.settings("maml", steps=steps) | {"checkpoint": {"every": 1, "keep": 2}}
    values["engine"] = {**values["engine"], "reduce": "exact", "shards": 2}
    values["train"] = {**values["train"], "tasks": 4}
    file = small_runs.write_run_file(workspace.folder / "run.toml", values)
    whole = workspace.folder / "whole"
    children.run_successfully(["train", "--config", str(file), "--out", str(whole)], workspace.folder / "output.txt")
    expected, failures, outcomes = small_runs.digest(whole), [], []
    cases = [(rank, 5 + index * (steps - 20) // max(1, kills)) for index in range(kills) for rank in ranks]
    for index in workspace.indices(len(cases)):
        rank, step = cases[index]
        out = workspace.folder / f"killed-{rank}-{step}"
        one = _killed(workspace, file, out, rank, step)
        if not one.complaint and small_runs.digest(out) != expected:
            one = one._replace(complaint="its result differs")
        failures += [f"rank {rank} at step {step}: {one.complaint}"] if one.complaint else []
        outcomes.append(one)
        shutil.rmtree(out, ignore_errors=True)
    # A run that did not resume, or did not end, counts as infinitely slow.
    resumed_after, ended_after = (
        [math.inf if one[place] is None else one[place] for one in outcomes] or [math.inf] for place in (2, 3)
    )
    hung = sum(one.hung for one in outcomes)
    text = (
        f"{len(outcomes) - len(failures)} of {len(cases)} finished equal bit for bit, {hung or 'none'} hung; from the"
        f" kill to the next step {statistics.median(resumed_after):.1f} s (median), {max(resumed_after):.1f} s at most,"
        f" to the end of the run {statistics.median(ended_after):.1f} s (median)"
    )
    passed = len(outcomes) == len(cases) and not failures and not hung and statistics.median(resumed_after) <= 15
    seconds = [[None if time is None else round(time, 1) for time in one[2:]] for one in outcomes]
    return Measured(passed, text, {"seconds to go on, to end": seconds, "wrong": failures})


class _Killing(NamedTuple):
    """The outcome of a run in which one rank was killed: a complaint or "", whether it hung, and seconds since then."""

    complaint: str
    hung: bool = False
    to_resume: float | None = None
    to_end: float | None = None


def _killed(workspace: Workspace, file: Path, out: Path, rank: int, step: int) -> _Killing:
    """Kill a rank after a step, and return the outcome of the run."""
    arguments = ["train", "--config", str(file), "--out", str(out), "--no-progress"]
    arguments += ["--nproc", "2", "--max-restarts", "1"]

    def saved() -> int:
        return max(checkpoint.steps(out / "ckpt"), default=0)

    def continues() -> bool:
        resumed = re.search(r"resumed after outer step (\d+)", child.output())
        return resumed is not None and saved() > int(resumed[1])

    with children.running(arguments, workspace.folder / "output.txt", fresh=True) as child:
        if not child.wait_for(lambda: saved() >= step):
            return _Killing(f"it did not reach step {step}: {child.output()[-200:]}")
        try:
            os.kill(children.pid_of_rank(out, rank), signal.SIGKILL)
            killed_at = time.monotonic()
            if not child.wait_for(continues):
                return _Killing(f"it did not resume: {child.output()[-200:]}", hung=child.code is None)
            to_resume = time.monotonic() - killed_at
            code = child.wait()
        except TimeoutError as error:
            return _Killing(str(error), hung=True)
        except ProcessLookupError as error:
            return _Killing(str(error))
        finally:
            _kill_all(out)
    complaint = f"exit code {code}: {child.output()[-200:]}" if code else ""
    return _Killing(complaint, False, to_resume, time.monotonic() - killed_at)


def _kill_all(out: Path) -> None:
    """Kill both ranks of a run: they outlive a launcher that is killed."""
    for rank in (0, 1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(children.pid_of_rank(out, rank), signal.SIGKILL)
