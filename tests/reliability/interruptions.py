"""Rows about runs that are killed or interrupted and then resumed, and about runs that are repeated."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge import hookimpl
from metaforge.runs import checkpoint
from tests.reliability import children, small_runs
from tests.reliability.rows import Measured, Workspace, row

_EXIT_CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}


def _train_command(file: Path, out: Path) -> list[str]:
    """Return the command that starts a run, or resumes it if its folder exists."""
    known = (out / "config.toml").is_file()
    return [
        "train",
        "--no-progress",
        *(["--resume", str(out)] if known else ["--config", str(file), "--out", str(out)]),
    ]


def _reference(workspace: Workspace, learner: str, values: Mapping[str, Any]) -> tuple[Path, str, float]:
    """Return the run file of a learner, the digest of its uninterrupted run, and the seconds that its steps took."""
    file = small_runs.write_run_file(workspace.folder / f"{learner}.toml", values)
    out = workspace.folder / f"{learner}-whole"
    code, output = children.run_command(_train_command(file, out), workspace.folder / "output.txt")
    if code:
        raise RuntimeError(f"the run of {learner} fails: {output[-300:]}")
    return file, small_runs.digest(out), checkpoint.load_latest(out / "ckpt")[0].facts["seconds"]


@row(
    2,
    "SIGKILL and SIGTERM at random times, with a checkpoint at every step, for three learners",
    goal="at least 100 kills; final state equal to the uninterrupted run bit for bit; 0 invalid checkpoints used",
)
def random_kills(
    workspace: Workspace, *, kills: int = 35, learners: Sequence[str] = ("maml", "protonet", "mann"), steps: int = 40
) -> Measured:
    """Kill the runs of each learner `kills` times; every tenth process is a new interpreter, the others are forked."""
    count: Counter[str] = Counter()
    failures: list[str] = []
    for learner in learners:
        file, expected_digest, seconds = _reference(workspace, learner, small_runs.settings(learner, steps=steps))
        generator, out = random.Random(learner), workspace.folder / learner
        for _ in workspace.indices(20 * kills):
            if count[f"kills of {learner}"] >= kills and not out.exists():
                break
            stop_signal = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            fresh = count[f"kills of {learner}"] % 10 == 9
            code = _killed(
                workspace, _train_command(file, out), stop_signal, generator.uniform(0.0, seconds / 2), fresh=fresh
            )
            if code == 0:
                count["runs"] += 1
                failures += _differences(out, expected_digest)
                shutil.rmtree(out)
                continue
            if code not in _EXIT_CODES[stop_signal]:
                failures.append(f"{learner}: exit code {code}: {(workspace.folder / 'output.txt').read_text()[-300:]}")
                shutil.rmtree(out, ignore_errors=True)
                continue
            count[f"kills of {learner}"] += 1
            count[f"by {stop_signal.name}"] += 1
            failures += _invalid(out)
    done = sum(count[f"kills of {learner}"] for learner in learners)
    text = f"{done} kills in {count['runs']} runs; {len(failures)} runs or checkpoints were wrong"
    return Measured(done >= kills * len(learners) and not failures, text, {**count, "wrong": failures[:20]})


def _killed(
    workspace: Workspace, arguments: Sequence[str], stop_signal: signal.Signals, after: float, *, fresh: bool
) -> int:
    """Run a command, send it a signal `after` seconds from the creation of its folder, and return the exit code."""
    with children.running(arguments, workspace.folder / "output.txt", fresh=fresh) as child:
        child.wait_for(lambda: "run folder:" in child.output())
        time.sleep(after)
        child.send(stop_signal)
        return child.wait()


def _invalid(out: Path) -> list[str]:
    """Return what is wrong with the checkpoints of a killed run; remove the folder of a run that had not started."""
    if not (out / "config.toml").is_file():
        shutil.rmtree(out, ignore_errors=True)
        return []
    ckpt = out / "ckpt"
    return [f"step {step}: {bad}" for step in checkpoint.steps(ckpt) if (bad := checkpoint.fault(ckpt, step))]


def _differences(out: Path, expected_digest: str) -> list[str]:
    """Return how a finished run differs from the uninterrupted one."""
    complaints = [] if small_runs.digest(out) == expected_digest else [f"the result of {out.name} differs"]
    return complaints + [f"{name} is left over" for name in small_runs.leftovers(out)]


class StopAfter:
    """Interrupts a run after a step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def metaforge_before_step(self, step: int) -> None:
        """Interrupt the step that follows."""
        if step == self.step + 1:
            raise KeyboardInterrupt


@row(
    6,
    "SIGTERM and SIGINT at 20 random times each, while data are loaded, in an evaluation and in the report; Ctrl-C"
    " twice, with one process and with two",
    goal="saved within 1 step + 2 s, exit code 143 or 130, resumed exactly; a second Ctrl-C ends the run within 0.5 s",
)
def signals(
    workspace: Workspace,
    *,
    times: int = 20,
    second: int = 5,
    other_places: bool = True,
    processes: Sequence[int] = (1, 2),
) -> Measured:
    """Interrupt runs of 40 steps that save only when they are interrupted, and resume them."""
    values = small_runs.settings("maml", steps=40) | {"checkpoint": {"every": 1000}}
    file, expected_digest, seconds = _reference(workspace, "maml", values)
    generator, delays, failures, done = random.Random(6), [], [], Counter[str]()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        for _ in workspace.indices(3 * times):
            if done[stop_signal.name] == times:
                break
            out = workspace.folder / f"{stop_signal.name}-{done[stop_signal.name]}"
            delay, complaint = _interrupt(workspace, file, out, stop_signal, generator.uniform(0.0, 0.8 * seconds))
            if delay is None and not complaint:
                continue
            delays += [delay] if delay is not None else []
            children.run_command(_train_command(file, out), workspace.folder / "output.txt")
            failures += [complaint] if complaint else _differences(out, expected_digest)
            done[stop_signal.name] += 1
            shutil.rmtree(out)
    second_delays = [_second_ctrl_c(workspace, count) for count in processes for _ in workspace.indices(second)]
    others = _other_places(workspace) if other_places else {}
    failures += [f"{place}: {complaint}" for place, complaint in others.items() if complaint]
    text = (
        f"{sum(done.values())} runs, saved after {max(delays, default=0):.2f} s at most, {len(failures)} wrong; a"
        f" second Ctrl-C ended the run after {max(second_delays):.2f} s at most ({second} times with"
        f" {' and '.join(map(str, processes))} processes each); also correct:"
        f" {', '.join(place for place, complaint in others.items() if not complaint) or 'nothing else'}"
    )
    passed = not failures and set(done.values()) == {times} and max(delays) <= 2.0 and max(second_delays) < 0.5
    median = statistics.median(delays) if delays else None
    return Measured(passed, text, {"median wait": median, "second": second_delays, "wrong": failures[:20]})


def _interrupt(
    workspace: Workspace, file: Path, out: Path, stop_signal: signal.Signals, after: float
) -> tuple[float | None, str]:
    """Interrupt a run; return the seconds until it has saved (None if it ended before), and what is wrong."""
    with children.running(_train_command(file, out), workspace.folder / "output.txt") as child:
        lines = out / "steps.jsonl"
        child.wait_for(lambda: bool(_steps_written(lines)))
        time.sleep(after)
        before, signalled_at = _steps_written(lines), time.time()
        child.send(stop_signal)
        code = child.wait()
    if code == 0:
        shutil.rmtree(out)
        return None, ""
    if code not in _EXIT_CODES[stop_signal] or code < 0:
        return None, f"exit code {code} after {stop_signal.name}: {child.output()[-300:]}"
    saved = checkpoint.load_latest(out / "ckpt")[0].step
    # A further step may end between the reading of the metrics file and the signal.
    complaint = "" if saved <= before + 2 else f"saved after step {saved}, interrupted after step {before}"
    return (out / "ckpt" / "LATEST").stat().st_mtime - signalled_at, complaint


def _steps_written(path: Path) -> int:
    """Return the number of steps in a metrics file."""
    return path.read_bytes().count(b'"train"') if path.is_file() else 0


def _second_ctrl_c(workspace: Workspace, processes: int) -> float:
    """Return the seconds until a run ends after a second Ctrl-C, in a step that takes many seconds."""
    values = small_runs.settings("maml", steps=3) | {"engine": {"threads": 1, "plan": "loop", "compile": "off"}}
    values["train"]["tasks"] = 5000
    file = small_runs.write_run_file(workspace.folder / "slow.toml", values)
    out = workspace.folder / "slow"
    shutil.rmtree(out, ignore_errors=True)
    arguments = [*_train_command(file, out), "--nproc", str(processes)]
    with children.running(arguments, workspace.folder / "output.txt", fresh=processes > 1) as child:
        child.wait_for(lambda: "run folder:" in child.output())
        time.sleep(1.0)
        child.send(signal.SIGINT)
        time.sleep(0.2)
        if child.code is not None:
            raise RuntimeError(f"the first Ctrl-C ended it: {child.output()[-300:]}")
        child.send(signal.SIGINT)
        sent_at = time.monotonic()
        code = child.wait()
    seconds = time.monotonic() - sent_at
    if code != 130:
        raise RuntimeError(f"exit code {code} after the second Ctrl-C: {child.output()[-300:]}")
    with contextlib.suppress(ProcessLookupError):
        raise RuntimeError(f"process {children.pid_of_rank(out, 0)} still runs after the second Ctrl-C")
    return seconds


def _other_places(workspace: Workspace) -> dict[str, str]:
    """Send signals while data are loaded, in an evaluation and in the report; return what is wrong with each."""
    complaints = {}
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        complaints[f"{stop_signal.name} while data are loaded"] = _while_loading(workspace, stop_signal)
        complaints[f"{stop_signal.name} in an evaluation"] = _while_evaluating(workspace, stop_signal)
        complaints[f"{stop_signal.name} in the report"] = _while_reporting(workspace, stop_signal)
    return complaints


def _while_loading(workspace: Workspace, stop_signal: signal.Signals) -> str:
    values = small_runs.settings("protonet", steps=1)
    values["dataset"] |= {"train": 10_000, "writers": 20, "size": 64}
    file, out = small_runs.write_run_file(workspace.folder / "large.toml", values), workspace.folder / "loading"
    with children.running(_train_command(file, out), workspace.folder / "output.txt") as child:
        time.sleep(1.0)
        child.send(stop_signal)
        code = child.wait()
    correct = code in _EXIT_CODES[stop_signal] and code > 0 and not out.exists() and "Traceback" not in child.output()
    return "" if correct else f"exit code {code}, {'a' if out.exists() else 'no'} folder: {child.output()[-300:]}"


def _while_evaluating(workspace: Workspace, stop_signal: signal.Signals) -> str:
    run = workspace.folder / "maml-whole"
    arguments = ["evaluate", str(run), "--tasks", "1000000", "--no-progress"]
    with children.running(arguments, workspace.folder / "output.txt") as child:
        time.sleep(1.0)
        child.send(stop_signal)
        code = child.wait()
    files_left = [*small_runs.leftovers(run), *(run / "evaluation").glob("*")]
    correct = code in _EXIT_CODES[stop_signal] and code > 0 and not files_left and "Traceback" not in child.output()
    return "" if correct else f"exit code {code}, left {files_left}: {child.output()[-300:]}"


def _while_reporting(workspace: Workspace, stop_signal: signal.Signals) -> str:
    file = small_runs.write_run_file(workspace.folder / "short.toml", small_runs.settings("maml", steps=2))
    out = workspace.folder / f"report-{stop_signal.name}"
    with children.running(_train_command(file, out), workspace.folder / "output.txt") as child:
        status = out / "status.json"
        child.wait_for(lambda: status.is_file() and "finished" in status.read_text("utf-8"))
        child.send(stop_signal)
        code = child.wait()
    finished, output = '"outcome": "finished"' in status.read_text("utf-8"), child.output()
    correct = code in _EXIT_CODES[stop_signal] and code > 0 and finished and "Traceback" not in output
    second_code, _ = children.run_command(["evaluate", str(out), "--no-progress"], workspace.folder / "output.txt")
    return "" if correct and second_code == 0 else f"exit code {code}, then {second_code}: {output[-300:]}"


@row(
    8,
    "the same run twice in one process, and in two processes with ordered sums",
    goal="identical digests",
)
def determinism(
    workspace: Workspace,
    *,
    learners: Sequence[str] = (*small_runs.LEARNERS,),
    shared: Sequence[str] = ("maml", "protonet", "cnp"),
) -> Measured:
    """Run each learner twice, and some learners also with two processes, with one thread per process."""
    failures: list[str] = []
    for learner in learners:
        values = small_runs.settings(learner, steps=10, tasks=4)
        values["engine"] |= {"reduce": "exact", "shards": 2}
        file, expected_digest, _ = _reference(workspace, learner, values)
        out = workspace.folder / learner
        code, output = children.run_command(_train_command(file, out), workspace.folder / "output.txt")
        failures += [
            f"{learner}: {one}" for one in (_differences(out, expected_digest) if code == 0 else [output[-300:]])
        ]
        if learner in shared:
            two = workspace.folder / f"{learner}-two"
            arguments = [*_train_command(file, two), "--nproc", "2"]
            with children.running(arguments, workspace.folder / "output.txt", fresh=True) as child:
                code = child.wait()
            failures += (
                [f"{learner}, two processes: {one}" for one in _differences(two, expected_digest)]
                if code == 0
                else [f"{learner}, two processes: exit code {code}: {child.output()[-300:]}"]
            )
    text = f"{len(learners)} learners repeated, {len(shared)} of them in two processes: {len(failures)} differ"
    return Measured(not failures, text, {"learners": [*learners], "two processes": [*shared], "wrong": failures})
