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


@pytest.mark.parametrize(
    ("number", "code", "processes"), [(signal.SIGTERM, 143, 2), (signal.SIGHUP, 129, 2), (signal.SIGHUP, 129, 1)]
)
def test_a_signal_ends_all_processes_after_they_have_saved(
    tmp_path: Path, number: signal.Signals, code: int, processes: int
) -> None:
    process = started(tmp_path / "run", "--nproc", str(processes), steps=100_000)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000005", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("stopped", code)
    assert checkpoint.load_latest(tmp_path / "run" / "ckpt")[0].step == status["steps"]


def test_a_hangup_under_nohup_does_not_end_a_run(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(tmp_path / "run", steps=300)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000005", process)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors


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
