"""`metaforge train --nproc N` starts the processes, ends them on a signal, and returns the exit code of the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing import SignalException

import metaforge
from metaforge.engine import launcher
from metaforge.runs import checkpoint
from metaforge.system import signals


def started(folder: Path, *words: str, steps: int = 400) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metaforge", "train", "--learner", "maml", "--dataset", "sinusoid"]
    command += ["--set", "train.tasks=4", "--set", "checkpoint.every=5", "--no-progress", "--steps", str(steps)]
    # A run of many steps would otherwise be compiled first.
    command += ["--set", "engine.compile=off"]
    command += ["--nproc", "2", "--out", str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ({}, 0),
        ({1: -9, 0: 143}, 9),
        ({0: -6, 1: 143}, 9),
        ({1: 3, 0: 143}, 3),
        ({0: 9, 1: 3}, 3),
        ({1: 9, 0: 6}, 6),
        ({1: 1, 0: 9}, 1),
        ({0: 130, 1: 130}, 9),
    ],
)
def test_the_exit_code_is_that_of_the_first_error(failures: dict[int, int], code: int) -> None:
    assert launcher._exit_code(failures) == code


@pytest.mark.parametrize(("later", "killed"), [(1.9, [11, 12]), (2.1, [])])
def test_a_second_ctrl_c_kills_the_processes_of_a_launcher(
    later: float, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, gone, left = [100.0], [], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(launcher.os, "killpg", lambda group, number: gone.append(group))
    monkeypatch.setattr(launcher.os, "_exit", left.append)
    workers = [SimpleNamespace(id=11), SimpleNamespace(id=12)]
    agent: Any = SimpleNamespace(get_worker_group=lambda: SimpleNamespace(workers=workers))
    handler = launcher._InterruptHandler(agent)
    with pytest.raises(SignalException):
        handler.receive(signal.SIGINT, None)
    now[0] += later
    handler.receive(signal.SIGINT, None)
    assert gone == killed
    assert left == ([130] if killed else [])


def ended(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    """Send a signal to a run, and check that it ends with the signal's exit code after it has saved its last step."""
    code = 128 + number
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    status = json.loads((folder / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("stopped", code)
    assert checkpoint.load_latest(folder / "ckpt")[0].step == status["steps"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_hangup_ends_all_processes_after_they_have_saved(tmp_path: Path, processes: int) -> None:
    process = started(tmp_path / "run", "--nproc", str(processes), steps=100_000)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000005", process)
    ended(process, tmp_path / "run", signal.SIGHUP)


def test_a_hangup_under_nohup_does_not_end_a_run_and_a_termination_does(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(tmp_path / "run", "--set", "checkpoint.keep=100000", steps=100_000)
    finally:
        signal.signal(signal.SIGHUP, before)
    folder = tmp_path / "run" / "ckpt"
    wait_for(folder / "step-0000005", process)
    process.send_signal(signal.SIGHUP)
    # The end of a run by a signal takes a few steps at most.
    wait_for(folder / f"step-{max(checkpoint.steps(folder)) + 50:07}", process)
    ended(process, tmp_path / "run", signal.SIGTERM)


def test_four_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    process = started(tmp_path / "four", "--set", "engine.reduce=exact", "--nproc", "4", steps=3)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    settings = {"engine": {"threads": 1, "reduce": "exact"}}
    one = metaforge.train("maml", "sinusoid", tasks=4, steps=3, out=tmp_path / "one", settings=settings)
    state = checkpoint.load_latest(tmp_path / "four" / "ckpt")[0]
    assert json.loads((tmp_path / "four" / "env.json").read_text())["processes"] == 4
    assert all(torch.equal(value, state.values[name]) for name, value in one.values.items())


def test_an_error_is_printed_once_and_sets_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "run" / "of mine").mkdir(parents=True)
    process = started(tmp_path / "run")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 8, errors
    assert errors.count("already exists") == 1
    assert "Traceback" not in errors
