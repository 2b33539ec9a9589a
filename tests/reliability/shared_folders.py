"""The row about several processes that want the same folder."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from metaforge.errors import StorageError
from metaforge.runs.folder import RunFolder, default_folder
from tests.reliability import children, small_runs
from tests.reliability.rows import Measured, Room, row

_SPAWNED = multiprocessing.get_context("forkserver")


@row(
    17,
    "12 processes × 20 rounds begin runs at once, with names of their own and with one; two writers; a dead one's lock",
    goal="0 shared folders; exit code 7 names process and host; the lock of a dead process is recovered",
)
def concurrent(room: Room, *, processes: int = 12, rounds: int = 20) -> Measured:
    """Let processes begin runs at the same moment, and try to write a run that another process writes."""
    barrier, answers = _SPAWNED.Barrier(processes), _SPAWNED.Queue()
    arguments = (str(room.sub("starts")), rounds, barrier, answers)
    starters = [_SPAWNED.Process(target=_start, args=arguments) for _ in range(processes)]
    for starter in starters:
        starter.start()
    found = [answers.get(timeout=120) for _ in starters]
    for starter in starters:
        starter.join(60)
    own = Counter(name for names, _ in found for name in names)
    won = Counter(number for _, numbers in found for number in numbers)
    shared = [name for name, count in (*own.items(), *won.items()) if count != 1]
    complete = len(own) == processes * rounds and len(won) == rounds
    wrong = [*(f"shared: {name}" for name in shared), *_two_writers(room)]
    text = (
        f"{len(own)} folders for {processes * rounds} starts, {len(won)} of {rounds} rounds for one name won by one;"
        f" {len(wrong)} things were not as they should be"
    )
    return Measured(complete and not wrong, text, {"wrong": wrong})


def _start(folder: str, rounds: int, barrier: Any, answers: Any) -> None:
    """Begin runs, two in each round, and tell which folders this process has got."""
    os.chdir(folder)
    own, won = [], []
    for number in range(rounds):
        barrier.wait(60)
        path = default_folder("one-two")
        RunFolder.create(path, config="", command="", environment={}).close()
        own.append(path.name)
        barrier.wait(60)
        try:
            RunFolder.create(Path(f"round-{number}"), config="", command="", environment={}).close()
            won.append(number)
        except StorageError as error:
            if "already exists" not in error.what:
                raise
    answers.put((own, won))


def _two_writers(room: Room) -> list[str]:
    """Return what is wrong when a run is resumed while it is written, pruned while it is written, and after a kill."""
    values = small_runs.settings("maml", steps=1_000_000) | {"checkpoint": {"every": 5}}
    file, out, wrong = small_runs.write_run_file(room.folder / "run.toml", values), room.folder / "run", []
    with children.running(["train", "--config", str(file), "--out", str(out)], room.folder / "first.txt") as first:
        first.wait_for(lambda: (out / "ckpt" / "LATEST").is_file())
        # It holds the run, and leaves the processor to the others.
        first.send(signal.SIGSTOP)
        for words in (["train", "--resume", str(out)], ["ckpt", "prune", str(out)]):
            code, said = children.finish(words, room.folder / "second.txt", seconds=30.0)
            if code != 7 or f"process {first.pid} on {platform.node()}" not in said:
                wrong.append(f"{words[0]} beside the first: exit code {code}: {said[-300:]}")
        if first.code is not None:
            wrong.append(f"the first ended: {first.said()[-300:]}")
        first.send(signal.SIGKILL)
        first.wait()
    with children.running(["train", "--resume", str(out), "--no-progress"], room.folder / "third.txt") as third:
        if not third.wait_for(lambda: "resumed after outer step" in third.said()):
            wrong.append(f"the dead one's lock was not recovered: {third.said()[-300:]}")
        time.sleep(0.2)
        third.send(signal.SIGTERM)
        if (code := third.wait()) != 143:
            wrong.append(f"exit code {code} of the resumed run: {third.said()[-300:]}")
    return wrong
