"""The row about several processes that create or write the same run folder."""

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
from tests.reliability.rows import Measured, Workspace, row

_SPAWNED = multiprocessing.get_context("forkserver")


@row(
    17,
    "12 processes × 20 rounds create runs at the same moment, with default names and with one name; two writers of one"
    " run; the lock of a dead process",
    goal="0 shared folders; exit code 7 and a message with process and host; the lock of a dead process is taken over",
)
def concurrent(workspace: Workspace, *, processes: int = 12, rounds: int = 20) -> Measured:
    """Create runs in several processes at the same moment, and try to write a run that another process writes."""
    barrier, answers = _SPAWNED.Barrier(processes), _SPAWNED.Queue()
    arguments = (str(workspace.subfolder("starts")), rounds, barrier, answers)
    starters = [_SPAWNED.Process(target=_create_runs, args=arguments) for _ in range(processes)]
    for starter in starters:
        starter.start()
    results = [answers.get(timeout=120) for _ in starters]
    for starter in starters:
        starter.join(60)
    own_folders = Counter(name for names, _ in results for name in names)
    shared_rounds = Counter(number for _, numbers in results for number in numbers)
    doubled = [name for name, count in (*own_folders.items(), *shared_rounds.items()) if count != 1]
    complete = len(own_folders) == processes * rounds and len(shared_rounds) == rounds
    failures = [*(f"shared: {name}" for name in doubled), *_two_writers(workspace)]
    text = (
        f"{len(own_folders)} folders for {processes * rounds} starts, {len(shared_rounds)} of {rounds} rounds"
        f" with one name had one winner; {len(failures)} failures"
    )
    return Measured(complete and not failures, text, {"wrong": failures})


def _create_runs(folder: str, rounds: int, barrier: Any, answers: Any) -> None:
    """Create two runs in each round, and put the names of the folders that this process has created."""
    os.chdir(folder)
    own_folders, shared_rounds = [], []
    for number in range(rounds):
        barrier.wait(60)
        path = default_folder("one-two")
        RunFolder.create(path, config="", command="", environment={}).close()
        own_folders.append(path.name)
        barrier.wait(60)
        try:
            RunFolder.create(Path(f"round-{number}"), config="", command="", environment={}).close()
            shared_rounds.append(number)
        except StorageError as error:
            if "already exists" not in error.what:
                raise
    answers.put((own_folders, shared_rounds))


def _two_writers(workspace: Workspace) -> list[str]:
    """Return what is wrong when a running run is resumed or pruned, and when a killed run is resumed."""
    values = small_runs.settings("maml", steps=1_000_000) | {"checkpoint": {"every": 5}}
    file, out, failures = small_runs.write_run_file(workspace.folder / "run.toml", values), workspace.folder / "run", []
    with children.running(["train", "--config", str(file), "--out", str(out)], workspace.folder / "first.txt") as first:
        first.wait_for(lambda: (out / "ckpt" / "LATEST").is_file())
        # A stopped process keeps its lock, and leaves the processor to the others.
        first.send(signal.SIGSTOP)
        for arguments in (["train", "--resume", str(out)], ["ckpt", "prune", str(out)]):
            code, output = children.run_command(arguments, workspace.folder / "second.txt", seconds=30.0)
            if code != 7 or f"process {first.pid} on {platform.node()}" not in output:
                failures.append(f"{arguments[0]} while the run is written: exit code {code}: {output[-300:]}")
        if first.code is not None:
            failures.append(f"the first ended: {first.output()[-300:]}")
        first.send(signal.SIGKILL)
        first.wait()
    with children.running(["train", "--resume", str(out), "--no-progress"], workspace.folder / "third.txt") as third:
        if not third.wait_for(lambda: "resumed after outer step" in third.output()):
            failures.append(f"the lock of the dead process was not taken over: {third.output()[-300:]}")
        time.sleep(0.2)
        third.send(signal.SIGTERM)
        if (code := third.wait()) != 143:
            failures.append(f"exit code {code} of the resumed run: {third.output()[-300:]}")
    return failures
