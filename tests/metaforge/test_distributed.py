"""Several processes are one run: the same weights, the same figures, one folder, and a common end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge import checkpoint
from metaforge.distributed import World
from metaforge.errors import ConfigError
from metaforge.protocols import Options, Regularizer
from metaforge.registry import scan

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
    registry = scan().including("regularizer", "spread", Spread)
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


def worker(folder: Path, rank: int) -> int:
    """Return the process that has this number in the run of a folder."""
    for entry in Path("/proc").iterdir():
        try:
            words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdecimal() and str(folder).encode() in words and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no process {rank}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    process = started(tmp_path / "run", "--max-restarts", "1", steps=60)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000010", process)
    os.kill(worker(tmp_path / "run", 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert "resumed after outer step" in errors
    whole = metaforge.train("maml", "sinusoid", tasks=4, steps=60, out=tmp_path / "whole", settings=SHARED)
    found = checkpoint.load_latest(tmp_path / "run" / "ckpt")[0]
    assert found.step == 60
    assert max(float((found.values[key] - whole.values[key]).abs().max()) for key in whole.values) <= 1e-5


def test_a_signal_to_the_launcher_ends_all_processes_with_what_they_have_learned_saved(tmp_path: Path) -> None:
    process = started(tmp_path / "run", steps=100_000)
    wait_for(tmp_path / "run" / "ckpt" / "step-0000005", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("stopped", 143)
    assert checkpoint.load_latest(tmp_path / "run" / "ckpt")[0].step == status["steps"]


def test_an_error_is_told_once_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    process = started(tmp_path / "run")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 8, errors
    assert errors.count("exists already") == 1
    assert "Traceback" not in errors
