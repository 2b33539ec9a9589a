"""Several processes train one run: the same weights and metrics as one process, in one run folder."""

from __future__ import annotations

import datetime
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge.authoring.functional import split_state, sum_of
from metaforge.authoring.progress import progress_of, training_progress
from metaforge.authoring.protocols import SHARE, Aux, Key, Options, Params, Regularizer, Task
from metaforge.engine import processes
from metaforge.engine.processes import World, _worker_errors
from metaforge.errors import ConfigError, ContractError, PluginError, WorkerError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint, training
from metaforge_plugins.learners.metric.protonet import ProtoNet

# Two validations, and a last step that is logged between them and the end.
STEPS = 12
CLOCK = ("elapsed", "eta", "tasks_per_second")


class Spread(Regularizer):
    """Adds the variance of the task losses, for which every rank needs the losses of all ranks."""

    Config = Options

    def __init__(self, config: Any) -> None: ...

    def combine(self, losses: torch.Tensor, terms: Params) -> torch.Tensor:
        return losses.var()


class Nearer(Regularizer):
    """Adds the variance of the losses before adaptation, and weight decay that grows during the training."""

    Config = Options
    terms = frozenset({"loss_before"})

    def __init__(self, config: Any) -> None: ...

    def init(self, modules: Any, key: Any) -> Params:
        return training_progress()

    def combine(self, losses: torch.Tensor, terms: Params) -> torch.Tensor:
        return terms["loss_before"].var() + losses.var()

    def penalty(self, values: Params) -> torch.Tensor:
        params, _ = split_state(values)
        return progress_of(values)[SHARE] * sum_of(value.square().sum() for value in params.values())


class Counting(ProtoNet):
    """Counts the tasks of each number of classes: `Aux.state` has the entry of the task's own number alone."""

    def init(self, key: Key) -> Params:
        # The sign of an entry that no task changes would show that something was added to it.
        return super().init(key) | {f"state.of.{ways}": torch.tensor(-0.0) for ways in range(3, 10)}

    def loss(self, values: Params, task: Task, key: Key) -> tuple[torch.Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(state={f"state.of.{self.ways}": loss.detach().double()} | dict(aux.state))


class Naming(ProtoNet):
    """Logs the loss under a name that has the number of classes."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[torch.Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(metrics={f"of_{self.ways}": loss.detach()})


GLYPHS = {"name": "glyphs", "train": 40, "val": 8, "test": 8}
SIXTEEN = {"name": "conv4", "filters": 4, "variant": "stride"}
SHARED = {"train": {"log_every": 5, "validate_every": 6, "validate_tasks": 5}, "engine": {"threads": 1}}
EXACT = {**SHARED, "engine": {"threads": 1, "reduce": "exact", "shards": 2}}
SHAPES = {
    **EXACT,
    "train": {**SHARED["train"], "sampler": "varied"},
    "task": {"sampler": "varied"},
    "varied": {"min_ways": 3, "max_ways": 8},
}
COUNTING = {"learner": "counting", "dataset": GLYPHS, "tasks": 4, "backbone": SIXTEEN}
# Name of the run, what is trained, and the largest difference between the weights of one process and of two.
RUNS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "exact": ({"learner": "maml", "dataset": "sinusoid", "tasks": 5, "settings": EXACT}, 0.0),
    # After the first one, whose values it takes over.
    "frozen": (
        {"learner": "fomaml", "dataset": "sinusoid", "tasks": 5, "freeze": ["model.0.*"], "settings": EXACT},
        0.0,
    ),
    "fast": ({"learner": "maml", "dataset": "sinusoid", "tasks": 5, "settings": SHARED}, 1e-6),
    "accumulate": (
        {
            "learner": "maml",
            "dataset": "sinusoid",
            "tasks": 3,
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "regularizers": ["spread"],
            "settings": {**EXACT, "train": {**SHARED["train"], "accumulate": 2, "warmup": 5}},
        },
        0.0,
    ),
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
    # Each task has a shape of its own, so the processes compute different numbers of groups of equal shapes.
    "varied": (
        {
            "learner": "protonet",
            "dataset": GLYPHS,
            "tasks": 4,
            "backbone": SIXTEEN,
            "settings": {**EXACT, "train": {**SHARED["train"], "sampler": "varied"}, "task": {"sampler": "varied"}},
        },
        0.0,
    ),
    "counting": ({**COUNTING, "settings": SHAPES}, 0.0),
    # Not by Adam: biases before batch norm have a gradient of rounding errors, which Adam scales up to its rate.
    "counting fast": ({**COUNTING, "optimizer": "sgd", "settings": {**SHAPES, "engine": SHARED["engine"]}}, 1e-6),
    "terms": (
        {"learner": "maml", "dataset": "sinusoid", "tasks": 5, "regularizers": ["nearer"], "settings": EXACT},
        0.0,
    ),
}


def train_all(folder: Path) -> None:
    """Train each of the runs for `STEPS` steps, in however many processes there are."""
    registry = scan().with_plugin("regularizer", "spread", Spread).with_plugin("regularizer", "nearer", Nearer)
    registry = registry.with_plugin("learner", "counting", Counting).with_plugin("learner", "naming", Naming)
    for name, (what, _) in RUNS.items():
        settings = {**what["settings"], "train": {"ways": 5, "queries": 2, **what["settings"]["train"]}}
        if what["dataset"] == "sinusoid" or "sampler" in what["settings"]["train"]:
            settings = what["settings"]
        source = folder / "exact" if name == "frozen" else None
        more = {"settings": settings, "init_from": source, "registry": registry}
        metaforge.train(**{**what, **more}, steps=STEPS, out=folder / name)
    naming = {**COUNTING, "learner": "naming", "tasks": 2, "settings": SHAPES, "registry": registry}
    try:
        metaforge.train(**naming, steps=STEPS, out=folder / "naming")
    except PluginError as error:
        (folder / f"refused by rank {processes.rank()}").write_text(error.what)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder with the runs of one process, and that with the runs of two processes under torchrun."""
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
def test_two_processes_train_the_same_weights_as_one(folders: tuple[Path, Path], name: str) -> None:
    one, two = (folder / name for folder in folders)
    ours, theirs = (checkpoint.load_latest(folder / "ckpt")[0] for folder in (one, two))
    assert ours.step == theirs.step == STEPS
    tolerance = RUNS[name][1]
    furthest = max(float((ours.values[key] - theirs.values[key]).abs().max()) for key in ours.values)
    assert furthest <= tolerance
    assert json.loads((two / "env.json").read_text())["processes"] == 2
    if tolerance == 0:
        assert rows(one) == rows(two)
        assert ours.facts["norms"] == theirs.facts["norms"]
        assert all(torch.equal(ours.training[key], theirs.training[key]) for key in ours.training)


def test_state_entries_of_other_shapes_keep_every_bit(folders: tuple[Path, Path]) -> None:
    ours, theirs = (checkpoint.load_latest(folder / "counting" / "ckpt")[0].values for folder in folders)
    counts = {name: float(value) for name, value in ours.items() if name.startswith("state.of.")}
    assert counts.pop("state.of.9") == 0
    assert min(counts.values()) > 0
    for name in ours:
        assert torch.equal(ours[name].view(torch.int32), theirs[name].view(torch.int32)), name


def test_metrics_of_other_names_on_another_rank_are_refused_by_name(folders: tuple[Path, Path]) -> None:
    one, two = folders
    (whole,) = (path.read_text() for path in one.glob("refused*"))
    assert "tasks of two shapes have different metrics: of_" in whole
    assert [(two / f"refused by rank {rank}").read_text() for rank in (0, 1)] == [whole, whole]


@pytest.mark.parametrize(("total", "size", "shards"), [(8, 1, 4), (8, 2, 4), (8, 4, 4), (7, 2, 4), (5, 2, None)])
def test_the_local_batches_of_all_ranks_cover_a_batch_in_order(total: int, size: int, shards: int | None) -> None:
    parts = [World(rank, size).local_batch(total, shards) for rank in range(size)]
    groups = [size for part in parts for size in part.groups]
    assert sum(groups) == total
    assert len(groups) == (shards or size)
    assert [part.first for part in parts] == [sum(sum(p.groups) for p in parts[:rank]) for rank in range(size)]
    if shards is not None:
        assert groups == list(World().local_batch(total, shards).groups)


@pytest.mark.parametrize(("total", "size", "shards"), [(8, 3, 4), (3, 1, 4), (1, 2, None)])
def test_a_batch_that_cannot_be_shared_is_refused(total: int, size: int, shards: int | None) -> None:
    with pytest.raises(ConfigError, match=f"cannot be shared by {size} processes"):
        World(0, size).local_batch(total, shards)


@pytest.mark.parametrize("begun", [True, False])
def test_after_a_restart_rank_0_decides_whether_to_resume(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(World):
        """Rank 1, whose own disk would lead to the opposite decision."""

        is_rank_zero = False

        def path(self, own: Path) -> Path:
            return own

        def maximum(self, *numbers: int) -> list[int]:
            return [max(number, begun) for number in numbers]

    if not begun:
        (tmp_path / "config.toml").touch()
    recorded: dict[str, bool] = {}
    monkeypatch.setattr(training.processes, "world", lambda device: nullcontext(Second(1, 2, device)))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def set_up(*arguments: Any, resuming: bool) -> None:
        recorded["resuming"] = resuming
        raise InterruptedError

    monkeypatch.setattr(training, "set_up", set_up)
    with pytest.raises(InterruptedError):
        metaforge.train("maml", "sinusoid", out=tmp_path)
    assert recorded == {"resuming": begun}


def test_a_failed_collective_is_reported_in_one_sentence() -> None:
    # The transport's message does not help: the error of the other process explains the failure.
    with (
        pytest.raises(WorkerError, match=r"^Another process of the run has ended or does not answer\.\n"),
        _worker_errors(),
    ):
        raise RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:23456")


def test_names_of_metrics_are_compared_in_one_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(World):
        """Rank 0 of two, where the other rank has `theirs`."""

        def __init__(self, theirs: list[str]) -> None:
            super().__init__(0, 2)
            self.theirs, self.calls = theirs, 0

        def maximum(self, *numbers: int) -> list[int]:
            self.calls += 1
            if self.theirs == ["loss", "score"]:
                return list(numbers)
            return [abs(number) + 1 for number in numbers]

        def gather(self, own: list[float], counts: list[int]) -> list[float]:
            theirs = json.dumps(self.theirs).encode()
            return [*own, *([len(theirs)] if len(counts) == len(own) + 1 else theirs)]

    same, other = Two(["loss", "score"]), Two(["of_3", "score"])
    for world in (same, other):
        assert world.local_batch(4, None).require_same_metrics is None
    check = same.local_batch(4, None, varied=True).require_same_metrics
    assert check is not None
    check(["loss", "score"])
    assert same.calls == 1
    with pytest.raises(ContractError, match=r"tasks of two shapes have different metrics: loss, of_3$"):
        other._require_same_metrics(["loss", "score"])
    assert World().local_batch(4, None, varied=True).require_same_metrics is None


def test_a_world_of_one_process_returns_what_it_is_passed(tmp_path: Path) -> None:
    alone = World()
    assert alone.is_rank_zero
    assert alone.maximum(3, 1) == [3, 1]
    assert alone.broadcast(b"data") == b"data"
    assert alone.path(tmp_path) == tmp_path
    assert alone.gather([1.0, 2.0], [2]) == [1.0, 2.0]


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def launched(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Set the variables that torchrun sets for a process."""
    for name, value in (LAUNCHED | changes).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RANK", value) for value in ("x", "-1", "1", "", "9" * 5000)),
        *(("WORLD_SIZE", value) for value in ("0", "x", "1.5")),
        *(("MASTER_PORT", value) for value in ("x", "-1", "65536")),
    ],
)
def test_a_variable_of_the_launcher_that_is_no_such_number_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    launched(monkeypatch, **{name: value})
    with (
        pytest.raises(ConfigError, match=f"The environment variable {name} is .*, but should be an integer from"),
        processes.world(torch.device("cpu")),
    ):
        pass


def test_the_ranks_and_the_restarts_must_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, RANK="x", LOCAL_RANK="y", TORCHELASTIC_RESTART_COUNT="z")
    for function in (processes.rank, processes.local_rank, processes.restart_count):
        with pytest.raises(ConfigError, match="The environment variable"):
            function()


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        launched(monkeypatch, MASTER_PORT=str(port))
        with (
            pytest.raises(ConfigError, match=rf"The port {port} of localhost is in use by another program\.") as caught,
            processes.world(torch.device("cpu")),
        ):
            pass
    assert "MASTER_PORT" in caught.value.remedy


def test_rank_0_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_TIMEOUT", datetime.timedelta(seconds=1))
    launched(monkeypatch, RANK="1", WORLD_SIZE="2", MASTER_PORT="1")
    with (
        pytest.raises(WorkerError, match=r"There is no connection to rank 0 at localhost, port 1\."),
        processes.world(torch.device("cpu")),
    ):
        pass
