"""Several processes are one run: the same weights, the same figures, one folder, and a common end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing import SignalException

import metaforge
from metaforge.authoring.protocols import Options, Regularizer
from metaforge.engine import launcher, processes
from metaforge.engine.processes import World, _joined, _peers
from metaforge.errors import ConfigError, WorkerError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint, training
from metaforge.system import signals

CLOCK = ("elapsed", "eta", "tasks_per_second")


class Spread(Regularizer):
    """Adds the variance of the tasks' losses, which no process knows alone."""

    Config = Options

    def __init__(self, config: Any) -> None: ...

    def combine(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.var()


GLYPHS = {"name": "glyphs", "train": 40, "val": 8, "test": 8}
SIXTEEN = {"name": "conv4", "filters": 4, "variant": "stride"}
SHARED = {"train": {"log_every": 5, "validate_every": 6, "validate_tasks": 5}, "engine": {"threads": 1}}
EXACT = {**SHARED, "engine": {"threads": 1, "reduce": "exact", "shards": 2}}
# Name of the run, what is trained, and how far two processes may be from one.
RUNS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "exact": ({"learner": "maml", "dataset": "sinusoid", "tasks": 5, "settings": EXACT}, 0.0),
    "fast": ({"learner": "maml", "dataset": "sinusoid", "tasks": 5, "settings": SHARED}, 1e-6),
    "state": (
        {
            "learner": "protonet",
            "dataset": GLYPHS,
            "tasks": 3,
            "backbone": SIXTEEN,
            "regularizers": ["spread"],
            "settings": EXACT,
        },
        0.0,
    ),
}


def train_all(folder: Path) -> None:
    """Train each of the runs for 20 steps, in however many processes there are."""
    registry = scan().with_plugin("regularizer", "spread", Spread)
    for name, (what, _) in RUNS.items():
        settings = {**what["settings"], "train": {"ways": 5, "queries": 2, **what["settings"]["train"]}}
        if what["dataset"] == "sinusoid":
            settings = what["settings"]
        metaforge.train(**{**what, "settings": settings}, steps=20, out=folder / name, registry=registry)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the runs of one process, and those of two that torchrun has started."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    script = two / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import importlib.util, pathlib
        spec = importlib.util.spec_from_file_location("runs", {str(Path(__file__))!r})
        runs = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runs)
        runs.train_all(pathlib.Path({str(two)!r}))
        """)
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    train_all(one)
    return one, two


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(folders: tuple[Path, Path], name: str) -> None:
    one, two = (folder / name for folder in folders)
    ours, theirs = (checkpoint.load_latest(folder / "ckpt")[0] for folder in (one, two))
    assert ours.step == theirs.step == 20
    tolerance = RUNS[name][1]
    furthest = max(float((ours.values[key] - theirs.values[key]).abs().max()) for key in ours.values)
    assert furthest <= tolerance
    assert json.loads((two / "env.json").read_text())["processes"] == 2
    if tolerance == 0:
        assert rows(one) == rows(two)
        assert ours.facts["norms"] == theirs.facts["norms"]
        assert all(torch.equal(ours.training[key], theirs.training[key]) for key in ours.training)


def test_four_processes_train_what_one_trains(tmp_path: Path) -> None:
    process = started(tmp_path / "four", "--set", "engine.reduce=exact", "--nproc", "4", steps=3)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    settings = {"engine": {"threads": 1, "reduce": "exact"}}
    one = metaforge.train("maml", "sinusoid", tasks=4, steps=3, out=tmp_path / "one", settings=settings)
    found = checkpoint.load_latest(tmp_path / "four" / "ckpt")[0]
    assert json.loads((tmp_path / "four" / "env.json").read_text())["processes"] == 4
    assert all(torch.equal(value, found.values[name]) for name, value in one.values.items())


@pytest.mark.parametrize(("total", "size", "shards"), [(8, 1, 4), (8, 2, 4), (8, 4, 4), (7, 2, 4), (5, 2, None)])
def test_shares_cover_a_batch_in_order(total: int, size: int, shards: int | None) -> None:
    shares = [World(rank, size).share(total, shards) for rank in range(size)]
    groups = [size for share in shares for size in share.groups]
    assert sum(groups) == total
    assert len(groups) == (shards or size)
    assert [share.first for share in shares] == [sum(sum(s.groups) for s in shares[:rank]) for rank in range(size)]
    if shards is not None:
        assert groups == list(World().share(total, shards).groups)


@pytest.mark.parametrize(("total", "size", "shards"), [(8, 3, 4), (3, 1, 4), (1, 2, None)])
def test_a_batch_that_cannot_be_shared_is_refused(total: int, size: int, shards: int | None) -> None:
    with pytest.raises(ConfigError, match=f"cannot be shared by {size} processes"):
        World(0, size).share(total, shards)


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
def test_the_exit_code_is_that_of_what_went_wrong_first(failures: dict[int, int], code: int) -> None:
    assert launcher._code_of(failures) == code


@pytest.mark.parametrize(("later", "killed"), [(1.9, [11, 12]), (2.1, [])])
def test_a_second_ctrl_c_kills_the_processes_of_a_launcher(
    later: float, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, gone, left = [100.0], [], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processes.os, "killpg", lambda group, number: gone.append(group))
    monkeypatch.setattr(processes.os, "_exit", left.append)
    workers = [SimpleNamespace(id=11), SimpleNamespace(id=12)]
    agent: Any = SimpleNamespace(get_worker_group=lambda: SimpleNamespace(workers=workers))
    impatience = launcher._Impatience(agent)
    with pytest.raises(SignalException):
        impatience.receive(signal.SIGINT, None)
    now[0] += later
    impatience.receive(signal.SIGINT, None)
    assert gone == killed
    assert left == ([130] if killed else [])


def test_a_signal_to_the_launcher_ends_all_processes_with_what_they_have_learned_saved(tmp_path: Path) -> None:
    process = started(tmp_path / "run", steps=100_000)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000005", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("stopped", 143)
    assert checkpoint.load_latest(tmp_path / "run" / "ckpt")[0].step == status["steps"]


@pytest.mark.parametrize("begun", [True, False])
def test_after_a_restart_rank_0_decides_whether_to_resume(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(World):
        """A rank other than 0, whose disk contradicts that of rank 0."""

        is_rank_zero = False

        def path(self, own: Path) -> Path:
            return own

        def maximum(self, *numbers: int) -> list[int]:
            return [max(number, begun) for number in numbers]

    if not begun:
        (tmp_path / "config.toml").touch()
    found: dict[str, bool] = {}
    monkeypatch.setattr(training.processes, "world", lambda device: nullcontext(Second(1, 2, device)))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def set_up(*arguments: Any, resuming: bool) -> None:
        found["resuming"] = resuming
        raise InterruptedError

    monkeypatch.setattr(training, "set_up", set_up)
    with pytest.raises(InterruptedError):
        metaforge.train("maml", "sinusoid", out=tmp_path)
    assert found == {"resuming": begun}


def test_an_error_is_told_once_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "run" / "of mine").mkdir(parents=True)
    process = started(tmp_path / "run")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 8, errors
    assert errors.count("already exists") == 1
    assert "Traceback" not in errors


def test_a_lost_peer_is_told_in_one_sentence() -> None:
    # What the transport says is of no use to a person who reads the other process's error above.
    with pytest.raises(WorkerError, match=r"^Another process of the run has ended or does not answer\.\n"), _peers():
        raise RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:23456")


def test_each_precision_is_added_up_by_itself() -> None:
    groups = [{"w": torch.full((2,), 0.1), "losses": torch.tensor([0.1], dtype=torch.float64)} for _ in range(3)]
    found = _joined(lambda rows: rows.sum(0), groups)
    assert {name: value.dtype for name, value in found.items()} == {"w": torch.float32, "losses": torch.float64}
    torch.testing.assert_close(found["w"], torch.full((2,), 0.3))
    torch.testing.assert_close(found["losses"], torch.tensor([0.3], dtype=torch.float64), rtol=1e-15, atol=0)
