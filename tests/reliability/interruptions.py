"""Rows about runs that are stopped and go on: killed, asked to end, interrupted at a step, and simply repeated."""

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
from tests.reliability.rows import Measured, Room, row

_ENDED = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}


def _words(file: Path, out: Path) -> list[str]:
    """Return the command that begins a run, or goes on with the one that is there."""
    known = (out / "config.toml").is_file()
    return [
        "train",
        "--no-progress",
        *(["--resume", str(out)] if known else ["--config", str(file), "--out", str(out)]),
    ]


def _reference(room: Room, learner: str, values: Mapping[str, Any]) -> tuple[Path, str, float]:
    """Return the run file of a learner, the digest of its run that nobody stops, and how long its steps took."""
    file = small_runs.write_run_file(room.folder / f"{learner}.toml", values)
    out = room.folder / f"{learner}-whole"
    code, said = children.finish(_words(file, out), room.folder / "said.txt")
    if code:
        raise RuntimeError(f"the run of {learner} fails: {said[-300:]}")
    return file, small_runs.digest(out), checkpoint.load_latest(out / "ckpt")[0].facts["seconds"]


@row(
    2,
    "SIGKILL and SIGTERM at random times, a checkpoint at every step, three learners",
    goal="at least 100 kills; the end equals the uninterrupted run's to the bit; 0 invalid checkpoints picked",
)
def random_kills(
    room: Room, *, kills: int = 35, learners: Sequence[str] = ("maml", "protonet", "mann"), steps: int = 40
) -> Measured:
    """Kill the runs of each learner `kills` times; every tenth process is a new interpreter, the others are forks."""
    count: Counter[str] = Counter()
    wrong: list[str] = []
    for learner in learners:
        file, whole, seconds = _reference(room, learner, small_runs.settings(learner, steps=steps))
        draw, out = random.Random(learner), room.folder / learner
        for _ in room.counted(20 * kills):
            if count[f"kills of {learner}"] >= kills and not out.exists():
                break
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            fresh = count[f"kills of {learner}"] % 10 == 9
            code = _killed(room, _words(file, out), number, draw.uniform(0.0, seconds / 2), fresh=fresh)
            if code == 0:
                count["runs"] += 1
                wrong += _differences(out, whole)
                shutil.rmtree(out)
                continue
            if code not in _ENDED[number]:
                wrong.append(f"{learner}: exit code {code}: {(room.folder / 'said.txt').read_text()[-300:]}")
                shutil.rmtree(out, ignore_errors=True)
                continue
            count[f"kills of {learner}"] += 1
            count[f"by {number.name}"] += 1
            wrong += _invalid(out)
    done = sum(count[f"kills of {learner}"] for learner in learners)
    text = f"{done} kills in {count['runs']} runs; {len(wrong)} runs or checkpoints were not as they should be"
    return Measured(done >= kills * len(learners) and not wrong, text, {**count, "wrong": wrong[:20]})


def _killed(room: Room, words: Sequence[str], number: signal.Signals, after: float, *, fresh: bool) -> int:
    """Run a command, send it a signal some time after it has found its folder, and return the exit code."""
    with children.running(words, room.folder / "said.txt", fresh=fresh) as child:
        child.wait_for(lambda: "run folder:" in child.said())
        time.sleep(after)
        child.send(number)
        return child.wait()


def _invalid(out: Path) -> list[str]:
    """Return what is wrong with the checkpoints of a run that was killed; one that had not begun goes."""
    if not (out / "config.toml").is_file():
        shutil.rmtree(out, ignore_errors=True)
        return []
    ckpt = out / "ckpt"
    return [f"step {step}: {bad}" for step in checkpoint.steps(ckpt) if (bad := checkpoint.fault(ckpt, step))]


def _differences(out: Path, whole: str) -> list[str]:
    """Return how a run that has ended differs from the uninterrupted one."""
    found = [] if small_runs.digest(out) == whole else [f"{out.name} came to something else"]
    return found + [f"{name} is left over" for name in small_runs.leftovers(out)]


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
    "SIGTERM and SIGINT at 20 random times each, while data load, in an evaluation, in the report; Ctrl-C twice, of one"
    " process and of two",
    goal="saved within 1 step + 2 s, exit code 143 or 130, resumed exactly; the second Ctrl-C leaves in under 0.5 s",
)
def signals(
    room: Room, *, times: int = 20, second: int = 5, elsewhere: bool = True, processes: Sequence[int] = (1, 2)
) -> Measured:
    """Stop runs of 40 steps that save only when they are stopped."""
    values = small_runs.settings("maml", steps=40) | {"checkpoint": {"every": 1000}}
    file, whole, seconds = _reference(room, "maml", values)
    draw, waits, wrong, done = random.Random(6), [], [], Counter[str]()
    for number in (signal.SIGTERM, signal.SIGINT):
        for _ in room.counted(3 * times):
            if done[number.name] == times:
                break
            out = room.folder / f"{number.name}-{done[number.name]}"
            waited, complaint = _asked(room, file, out, number, draw.uniform(0.0, 0.8 * seconds))
            if waited is None and not complaint:
                continue
            waits += [waited] if waited is not None else []
            children.finish(_words(file, out), room.folder / "said.txt")
            wrong += [complaint] if complaint else _differences(out, whole)
            done[number.name] += 1
            shutil.rmtree(out)
    seconds_after = [_twice(room, count) for count in processes for _ in room.counted(second)]
    places = _elsewhere(room) if elsewhere else {}
    wrong += [f"{place}: {complaint}" for place, complaint in places.items() if complaint]
    text = (
        f"{sum(done.values())} runs, saved after {max(waits, default=0):.2f} s at most, {len(wrong)} not as they should"
        f" be; the second Ctrl-C left after {max(seconds_after):.2f} s at most ({second} times with"
        f" {' and '.join(map(str, processes))} processes each); also right"
        f" {', '.join(place for place, complaint in places.items() if not complaint) or 'nowhere else'}"
    )
    passed = not wrong and set(done.values()) == {times} and max(waits) <= 2.0 and max(seconds_after) < 0.5
    median = statistics.median(waits) if waits else None
    return Measured(passed, text, {"median wait": median, "second": seconds_after, "wrong": wrong[:20]})


def _asked(room: Room, file: Path, out: Path, number: signal.Signals, after: float) -> tuple[float | None, str]:
    """Ask a run to end; return how long it took to save (None where it was over before), and what is wrong."""
    with children.running(_words(file, out), room.folder / "said.txt") as child:
        lines = out / "steps.jsonl"
        child.wait_for(lambda: bool(_steps_told(lines)))
        time.sleep(after)
        before, asked = _steps_told(lines), time.time()
        child.send(number)
        code = child.wait()
    if code == 0:
        shutil.rmtree(out)
        return None, ""
    if code not in _ENDED[number] or code < 0:
        return None, f"exit code {code} after {number.name}: {child.said()[-300:]}"
    saved = checkpoint.load_latest(out / "ckpt")[0].step
    # A step may end between the look at its line and the signal.
    complaint = "" if saved <= before + 2 else f"saved after step {saved}, asked after {before}"
    return (out / "ckpt" / "LATEST").stat().st_mtime - asked, complaint


def _steps_told(path: Path) -> int:
    """Return how many steps a run has written down."""
    return path.read_bytes().count(b'"train"') if path.is_file() else 0


def _twice(room: Room, processes: int) -> float:
    """Return how long a run, in the midst of a step of many seconds, lives after a second Ctrl-C."""
    values = small_runs.settings("maml", steps=3) | {"engine": {"threads": 1, "plan": "loop", "compile": "off"}}
    values["train"]["tasks"] = 5000
    file = small_runs.write_run_file(room.folder / "slow.toml", values)
    out = room.folder / "slow"
    shutil.rmtree(out, ignore_errors=True)
    words = [*_words(file, out), "--nproc", str(processes)]
    with children.running(words, room.folder / "said.txt", fresh=processes > 1) as child:
        child.wait_for(lambda: "run folder:" in child.said())
        time.sleep(1.0)
        child.send(signal.SIGINT)
        time.sleep(0.2)
        if child.code is not None:
            raise RuntimeError(f"the first Ctrl-C ended it: {child.said()[-300:]}")
        child.send(signal.SIGINT)
        begun = time.monotonic()
        code = child.wait()
    seconds = time.monotonic() - begun
    if code != 130:
        raise RuntimeError(f"exit code {code} after the second Ctrl-C: {child.said()[-300:]}")
    with contextlib.suppress(ProcessLookupError):
        raise RuntimeError(f"process {children.worker(out, 0)} has outlived the second Ctrl-C")
    return seconds


def _elsewhere(room: Room) -> dict[str, str]:
    """Send signals while data load, in an evaluation and in the report; return what is wrong with each."""
    found = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        found[f"{number.name} while data load"] = _while_loading(room, number)
        found[f"{number.name} in an evaluation"] = _while_evaluating(room, number)
        found[f"{number.name} in the report"] = _while_reporting(room, number)
    return found


def _while_loading(room: Room, number: signal.Signals) -> str:
    values = small_runs.settings("protonet", steps=1)
    values["dataset"] |= {"train": 10_000, "writers": 20, "size": 64}
    file, out = small_runs.write_run_file(room.folder / "large.toml", values), room.folder / "loading"
    with children.running(_words(file, out), room.folder / "said.txt") as child:
        time.sleep(1.0)
        child.send(number)
        code = child.wait()
    right = code in _ENDED[number] and code > 0 and not out.exists() and "Traceback" not in child.said()
    return "" if right else f"exit code {code}, {'a' if out.exists() else 'no'} folder: {child.said()[-300:]}"


def _while_evaluating(room: Room, number: signal.Signals) -> str:
    run = room.folder / "maml-whole"
    words = ["evaluate", str(run), "--tasks", "1000000", "--no-progress"]
    with children.running(words, room.folder / "said.txt") as child:
        time.sleep(1.0)
        child.send(number)
        code = child.wait()
    left = [*small_runs.leftovers(run), *(run / "evaluation").glob("*")]
    right = code in _ENDED[number] and code > 0 and not left and "Traceback" not in child.said()
    return "" if right else f"exit code {code}, left {left}: {child.said()[-300:]}"


def _while_reporting(room: Room, number: signal.Signals) -> str:
    file = small_runs.write_run_file(room.folder / "short.toml", small_runs.settings("maml", steps=2))
    out = room.folder / f"report-{number.name}"
    with children.running(_words(file, out), room.folder / "said.txt") as child:
        status = out / "status.json"
        child.wait_for(lambda: status.is_file() and "finished" in status.read_text("utf-8"))
        child.send(number)
        code = child.wait()
    ended, said = '"outcome": "finished"' in status.read_text("utf-8"), child.said()
    right = code in _ENDED[number] and code > 0 and ended and "Traceback" not in said
    again, _ = children.finish(["evaluate", str(out), "--no-progress"], room.folder / "said.txt")
    return "" if right and again == 0 else f"exit code {code}, then {again}: {said[-300:]}"


@row(
    8,
    "runs repeated, and shared by two processes in ordered sums (no processes read data, so their number cannot show)",
    goal="identical digests",
)
def determinism(
    room: Room,
    *,
    learners: Sequence[str] = (*small_runs.LEARNERS,),
    shared: Sequence[str] = ("maml", "protonet", "cnp"),
) -> Measured:
    """Repeat each learner's run in another process, and some with two processes; one thread each."""
    wrong: list[str] = []
    for learner in learners:
        values = small_runs.settings(learner, steps=10, tasks=4)
        values["engine"] |= {"reduce": "exact", "shards": 2}
        file, whole, _ = _reference(room, learner, values)
        out = room.folder / learner
        code, said = children.finish(_words(file, out), room.folder / "said.txt")
        wrong += [f"{learner}: {one}" for one in (_differences(out, whole) if code == 0 else [said[-300:]])]
        if learner in shared:
            two = room.folder / f"{learner}-two"
            words = [*_words(file, two), "--nproc", "2"]
            with children.running(words, room.folder / "said.txt", fresh=True) as child:
                code = child.wait()
            wrong += (
                [f"{learner}, two processes: {one}" for one in _differences(two, whole)]
                if code == 0
                else [f"{learner}, two processes: exit code {code}: {child.said()[-300:]}"]
            )
    text = f"{len(learners)} learners repeated, {len(shared)} of them by two processes: {len(wrong)} differ"
    return Measured(not wrong, text, {"learners": [*learners], "two processes": [*shared], "wrong": wrong})
