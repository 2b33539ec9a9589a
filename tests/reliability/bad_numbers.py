"""The row about numbers that go wrong: one task in one place, at one step, of a learner made for it."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import unittest.mock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import metaforge
from metaforge.authoring.protocols import (
    Aux,
    Dataset,
    Examples,
    Key,
    Kind,
    Learner,
    Options,
    Params,
    Tags,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.errors import CheckpointError, DivergedError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs import outer_optimizer as outer
from metaforge.runs.divergence import REMEMBERED
from tests.reliability import processes, small_runs
from tests.reliability.rows import Measured, Room, row

PLACES = (
    "pixel",
    "inner loss",
    "inner gradient",
    "outer loss",
    "meta-gradient only",
    "state",
    "optimiser",
    "optimiser's memory",
    "overflow",
    "leap",
)
# Three tasks a step: the eighth episode is of step 3.
_EPISODE, _STEP = 7, 3
# A leap shows against the norms of the steps before it.
_LATE_EPISODE, _LATE_STEP = 70, 24
_MARK = 1000.0
_ORDINARY = outer._optimizer_for


class Slopes(Dataset):
    """Lines through the origin; one episode (or all from one on) is marked by its first x."""

    class Config(Options):
        marked: int = _EPISODE
        more: bool = False
        pixel: bool = False

    reference = ""
    defaults: Mapping[Kind, Mapping[str, Any]] = {}
    kind: Kind = "regression"
    note = ""

    def __init__(self, config: Any, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of lines."""
        return TaskSpec("regression", (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes whose x are 0.1, 0.2, ... and whose slopes follow from their numbers."""
        episodes = torch.arange(first, first + count, dtype=torch.float32)
        x = torch.linspace(0.1, 1.0, shape.shots).reshape(1, -1, 1).repeat(count, 1, 1)
        y = x * (1 + torch.sin(episodes)).reshape(-1, 1, 1)
        marked = (episodes >= self.config.marked) if self.config.more else (episodes == self.config.marked)
        if split == "train":
            x[marked, 0] = float("nan") if self.config.pixel else _MARK
        return Task(Examples(x, y), Examples(x.clone(), y.clone()))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return nothing: there are as many lines as are asked for."""
        return {}


class Slope(Learner):
    """Learns a slope with one inner step, and goes wrong in one place where a task is marked."""

    class Config(Options):
        place: str = "pixel"

    reference = ""
    defaults: Mapping[Kind, Mapping[str, Any]] = {}
    tags = Tags(kinds=frozenset({"regression"}))

    def __init__(self, config: Any, parts: Any) -> None:
        self.place = config.place

    def init(self, key: Key) -> Params:
        """Return a slope of one, and a state that counts."""
        return {"slope": torch.ones(()), "state.count": torch.zeros(())}

    def adapt(self, values: Params, support: Any, *, steps: Any = None, key: Any = None) -> Any:
        """Take one step of the squared error."""
        wrong = (support.x[0] == _MARK).float().squeeze()
        x = torch.where(support.x == _MARK, torch.full_like(support.x, 0.1), support.x)
        error = values["slope"] * x - support.y
        gradient = 2 * (error * x).mean()
        if self.place == "inner loss":
            gradient = gradient * torch.where(wrong > 0, torch.nan, 1.0)
        if self.place == "inner gradient":
            gradient = gradient + torch.where(wrong > 0, torch.inf, 0.0)
        rate = torch.where(wrong > 0, 1e38, 0.1) if self.place == "overflow" else 0.1
        return values["slope"] - rate * gradient

    def predict(self, values: Params, fast: Any, x: Any, *, key: Any = None) -> Any:
        """Return the line at x."""
        return fast * x

    def loss(self, values: Params, task: Task, key: Key) -> Any:
        """Return the squared error of the query points after the inner step."""
        wrong = (task.support.x[0] == _MARK).float().squeeze()
        x = torch.where(task.query.x == _MARK, torch.full_like(task.query.x, 0.1), task.query.x)
        loss = (self.predict(values, self.adapt(values, task.support), x) - task.query.y).square().mean()
        state = {"state.count": torch.ones(())}
        if self.place == "outer loss":
            loss = loss * torch.where(wrong > 0, torch.inf, 1.0)
        if self.place == "meta-gradient only":
            # The norm of a difference that is zero: it is 0, and its gradient is no number.
            difference = values["slope"] - values["slope"].detach()
            loss = loss + torch.where(wrong > 0, difference.square(), 1.0).sqrt()
        if self.place == "state":
            state = {"state.count": torch.where(wrong > 0, torch.nan, 1.0)}
        if self.place == "optimiser's memory":
            # Adam keeps squares: they overflow, and its step is then zero.
            loss = loss * torch.where(wrong > 0, 1e22, 1.0)
        if self.place == "leap":
            loss = loss * torch.where(wrong > 0, 1e12, 1.0)
        return loss, Aux({}, state)


def _poisoned(config: Any, leaves: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Return the optimiser that a run asks for, which steps to a place that is not finite at its third step."""
    optimizer, steps = _ORDINARY(config, leaves), itertools.count(1)

    def spoil(*given: Any) -> None:
        if next(steps) == _STEP:
            leaves[0].data.fill_(torch.inf)

    optimizer.register_step_post_hook(spoil)
    return optimizer


@row(
    7,
    "a number that is not finite, or a leap, at one of 11 places; steps left out; 7 learners' ordinary norms",
    goal="stopped in the same step with exit code 6, parameter and episodes named, the state before it saved",
)
def places(room: Room, *, learners: tuple[str, ...] = (*small_runs.LEARNERS,), steps: int = 60) -> Measured:
    """Run into each of the places, and then leave bad steps out, up to the limit."""
    registry = _registry()
    wrong = [f"{place}: {said}" for place in PLACES if (said := _stopped(room.folder / place, place, registry))]
    wrong += [f"one process only: {said}" for said in _one_process_only(room.folder / "one-process")]
    wrong += [f"left out: {said}" for said in _left_out(room, registry)]
    ratios = {learner: _largest_ratio(room, learner, steps) for learner in learners}
    wrong += [f"{learner} came to {ratio:.3g} times its median" for learner, ratio in ratios.items() if ratio > 1e5]
    tried = (*PLACES, "one process only")
    bad = [one for one in wrong if one.partition(":")[0] in tried]
    text = (
        f"{len(tried) - len(bad)} of {len(tried)} stopped in the same step; the longest meta-gradient of"
        f" {len(learners)} learners' ordinary runs is {max(ratios.values()):.3g} times the running median (1e6 ends a"
        " run)"
    )
    return Measured(not wrong, text, {"places": tried, "norms": ratios, "wrong": wrong})


def _registry() -> Registry:
    return scan().with_plugin("learner", "slope", Slope).with_plugin("dataset", "slopes", Slopes)


def train_in_two(out: str) -> None:
    """Train where the second of two processes alone sees the marked episode; exit with the code of what stops it."""
    try:
        _train(Path(out), "pixel", _registry(), _STEP + 5, engine={"threads": 1, "reduce": "exact", "shards": 2})
    except DivergedError as error:
        raise SystemExit(error.exit_code) from error


def _one_process_only(out: Path) -> list[str]:
    """Return what is wrong with how both processes end when one of them sees a number that is not finite."""
    codes = processes.pair("train_in_two", str(out), output=out.with_name("said"))
    status = json.loads((out / "status.json").read_text("utf-8"))
    found = (codes, status["exit_code"], status.get("steps"), checkpoint.load_latest(out / "ckpt")[0].step)
    return [] if found == ([6, 6], 6, _STEP - 1, _STEP - 1) else [f"it ended as {found}"]


def _train(out: Path, place: str, registry: Registry, steps: int, **settings: Any) -> metaforge.runs.run.Run:
    marked = {"marked": _LATE_EPISODE if place == "leap" else _EPISODE, "pixel": place == "pixel"}
    train = {"steps": steps, "tasks": 3, "optimizer": "sgd", "lr": 0.01, **settings.pop("train", {})}
    given = {"task": {"ways": 1, "shots": 5, "queries": 5}, "train": train}
    given["engine"] = settings.pop("engine", {"threads": 1, "plan": "loop"})
    given |= {"evaluate": {"tasks": 2}, "dataset": marked | settings.pop("dataset", {}), "learner": {"place": place}}
    return metaforge.train("slope", "slopes", settings=given, out=out, registry=registry)


def _stopped(out: Path, place: str, registry: Registry) -> str:
    """Return what is wrong with how a run ends that runs into a place, an empty text if nothing is."""
    step = _LATE_STEP if place == "leap" else _STEP
    single = ("meta-gradient only", "optimiser", "optimiser's memory", "leap")
    names = ("slope",) if place in single else ("slope", "state.count")
    train = {"train": {"optimizer": "adam"}} if place == "optimiser's memory" else {}
    sane = _train(
        out.with_name(f"{place}-sane"), "none", registry, step - 1, dataset={"marked": -1, "pixel": False}, **train
    )
    try:
        with unittest.mock.patch.object(outer, "_optimizer_for", _poisoned if place == "optimiser" else _ORDINARY):
            _train(out, place, registry, step + 5, dataset={"marked": -1} if place == "optimiser" else {}, **train)
    except DivergedError as error:
        said = str(error)
    else:
        return "it went on"
    status = json.loads((out / "status.json").read_text("utf-8"))
    if (status["exit_code"], status.get("steps", 0)) != (6, step - 1):
        return f"exit code {status['exit_code']} after step {status.get('steps', 0)}: {said}"
    episode = _LATE_EPISODE if place == "leap" else _EPISODE
    told = str(episode) in said or f"{3 * (step - 1)} to {3 * step - 1}" in said
    if not told or not any(name in said for name in names):
        return f"it does not name parameter and episodes: {said}"
    try:
        saved, bad = checkpoint.load_latest(out / "ckpt")
    except CheckpointError as error:
        return str(error)
    same = all(torch.equal(saved.values[name], value) for name, value in sane.values.items())
    return "" if saved.step == step - 1 and not bad and same else f"the state of step {saved.step} is saved"


def _left_out(room: Room, registry: Registry) -> list[str]:
    """Return what is wrong with runs that may leave bad steps out."""
    wrong = []
    run = _train(room.folder / "skip", "outer loss", registry, 6, train={"on_nonfinite": "skip"})
    if run.summary.get("skipped") != [_STEP] or run.summary["steps"] != 6:
        wrong.append(f"one bad step came to {run.summary}")
    for limit in (0, 2):
        out = room.folder / f"limit-{limit}"
        settings = {"train": {"on_nonfinite": "skip", "skip_limit": limit}, "dataset": {"more": True}}
        try:
            _train(out, "outer loss", registry, 20, **settings)
            wrong.append(f"a limit of {limit} was not kept")
        except DivergedError:
            steps = json.loads((out / "status.json").read_text("utf-8"))["steps"]
            if steps != _STEP - 1 + limit:
                wrong.append(f"with a limit of {limit} it ended after step {steps}")
        shutil.rmtree(out)
    return wrong + [said for optimizer in ("sgd", "adam") if (said := _rolled_back(room, registry, optimizer))]


def _rolled_back(room: Room, registry: Registry, optimizer: str) -> str:
    """Return what is wrong with a run that leaves a step out once the optimiser has written, "" if nothing is."""
    train = {"on_nonfinite": "skip", "optimizer": optimizer}
    # There the step is left out for its loss: the optimiser never hears of it.
    unheard = _train(room.folder / f"unheard-{optimizer}", "outer loss", registry, _STEP + 2, train=train)
    with unittest.mock.patch.object(outer, "_optimizer_for", _poisoned):
        undone = _train(
            room.folder / f"undone-{optimizer}", "none", registry, _STEP + 2, train=train, dataset={"marked": -1}
        )
    same = all(torch.equal(undone.values[name], value) for name, value in unheard.values.items())
    left_out = (unheard.summary.get("skipped"), undone.summary.get("skipped"))
    return "" if same and left_out == ([_STEP], [_STEP]) else f"{optimizer}: a step undone leaves a trace: {left_out}"


def _largest_ratio(room: Room, learner: str, steps: int) -> float:
    """Return the longest meta-gradient of an ordinary run, in multiples of the median of those before it."""
    out = room.folder / learner
    values = small_runs.settings(learner, steps=min(steps, REMEMBERED))
    metaforge.train(values.pop("learner")["name"], settings=values, out=out)
    norms = checkpoint.load_latest(out / "ckpt")[0].facts["norms"]
    pairs = [(norm, statistics.median(norms[:index])) for index, norm in enumerate(norms) if index >= 20]
    return max((norm / max(median, 1e-3) for norm, median in pairs), default=0.0)
