"""The row about non-finite numbers: one marked task makes one quantity non-finite in one outer step."""

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
from metaforge.runs import checkpoint, outer_optimizer
from metaforge.runs.divergence import REMEMBERED
from tests.reliability import small_runs
from tests.reliability.rows import Measured, Workspace, row
from tests.reliability.two_processes import call_in_two

PLACES = (
    "pixel",
    "inner loss",
    "inner gradient",
    "outer loss",
    "meta-gradient only",
    "state",
    "optimiser",
    "optimiser state",
    "overflow",
    "jump",
)
# With three tasks per step, episode 7 belongs to step 3.
_EPISODE, _STEP = 7, 3
# A jump of the meta-gradient is recognised by the norms of the steps before it, so it must come later.
_JUMP_EPISODE, _JUMP_STEP = 70, 24
_MARKED_X = 1000.0
_make_optimizer = outer_optimizer.torch_optimizer


class Lines(Dataset):
    """Lines through the origin; one training episode (with `more`, also all after it) is marked by its first x."""

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
        """Return the spec of a one-dimensional regression task."""
        return TaskSpec("regression", (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes with x from 0.1 to 1 whose slopes depend on the number of the episode."""
        episodes = torch.arange(first, first + count, dtype=torch.float32)
        x = torch.linspace(0.1, 1.0, shape.shots).reshape(1, -1, 1).repeat(count, 1, 1)
        y = x * (1 + torch.sin(episodes)).reshape(-1, 1, 1)
        marked = (episodes >= self.config.marked) if self.config.more else (episodes == self.config.marked)
        if split == "train":
            x[marked, 0] = float("nan") if self.config.pixel else _MARKED_X
        return Task(Examples(x, y), Examples(x.clone(), y.clone()))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return no facts."""
        return {}


class SlopeLearner(Learner):
    """Learns a slope with one inner step; for a marked task it makes the quantity `place` non-finite."""

    class Config(Options):
        place: str = "pixel"

    reference = ""
    defaults: Mapping[Kind, Mapping[str, Any]] = {}
    tags = Tags(kinds=frozenset({"regression"}))

    def __init__(self, config: Any, parts: Any) -> None:
        self.place = config.place

    def init(self, key: Key) -> Params:
        """Return a slope of one, and a state entry that counts the losses."""
        return {"slope": torch.ones(()), "state.count": torch.zeros(())}

    def adapt(self, values: Params, support: Any, *, steps: Any = None, key: Any = None) -> Any:
        """Return the slope after one gradient step on the squared error."""
        marked = (support.x[0] == _MARKED_X).float().squeeze()
        x = torch.where(support.x == _MARKED_X, torch.full_like(support.x, 0.1), support.x)
        error = values["slope"] * x - support.y
        gradient = 2 * (error * x).mean()
        if self.place == "inner loss":
            gradient = gradient * torch.where(marked > 0, torch.nan, 1.0)
        if self.place == "inner gradient":
            gradient = gradient + torch.where(marked > 0, torch.inf, 0.0)
        rate = torch.where(marked > 0, 1e38, 0.1) if self.place == "overflow" else 0.1
        return values["slope"] - rate * gradient

    def predict(self, values: Params, fast: Any, x: Any, *, key: Any = None) -> Any:
        """Return the line at x."""
        return fast * x

    def loss(self, values: Params, task: Task, key: Key) -> Any:
        """Return the squared error of the query points after the inner step."""
        marked = (task.support.x[0] == _MARKED_X).float().squeeze()
        x = torch.where(task.query.x == _MARKED_X, torch.full_like(task.query.x, 0.1), task.query.x)
        loss = (self.predict(values, self.adapt(values, task.support), x) - task.query.y).square().mean()
        state = {"state.count": torch.ones(())}
        if self.place == "outer loss":
            loss = loss * torch.where(marked > 0, torch.inf, 1.0)
        if self.place == "meta-gradient only":
            # The square root of zero is 0, but its gradient is NaN.
            difference = values["slope"] - values["slope"].detach()
            loss = loss + torch.where(marked > 0, difference.square(), 1.0).sqrt()
        if self.place == "state":
            state = {"state.count": torch.where(marked > 0, torch.nan, 1.0)}
        if self.place == "optimiser state":
            # Adam stores squared gradients: they overflow, and its update is then zero.
            loss = loss * torch.where(marked > 0, 1e22, 1.0)
        if self.place == "jump":
            loss = loss * torch.where(marked > 0, 1e12, 1.0)
        return loss, Aux({}, state)


def _failing_optimizer(plugin: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser of a run, which sets a parameter to infinity at its third step."""
    optimizer, steps = _make_optimizer(plugin, groups), itertools.count(1)

    def set_infinite(*arguments: Any) -> None:
        if next(steps) == _STEP:
            groups[0]["params"][0].data.fill_(torch.inf)

    optimizer.register_step_post_hook(set_infinite)
    return optimizer


@row(
    7,
    "a non-finite number or a jump of the meta-gradient in each of 11 places; skipped steps; norms of 7 ordinary runs",
    goal="stops in that step with exit code 6; the message names parameter and episodes; the state before it is saved",
)
def places(workspace: Workspace, *, learners: tuple[str, ...] = (*small_runs.LEARNERS,), steps: int = 60) -> Measured:
    """Make each of the places fail, then skip failing steps up to the limit, then take the norms of ordinary runs."""
    registry = _registry()
    failures = [
        f"{place}: {message}" for place in PLACES if (message := _stopped(workspace.folder / place, place, registry))
    ]
    failures += [f"on one rank only: {message}" for message in _on_one_rank_only(workspace.folder / "one-rank")]
    failures += [f"skipped steps: {message}" for message in _skipped_steps(workspace, registry)]
    ratios = {learner: _largest_ratio(workspace, learner, steps) for learner in learners}
    failures += [f"{learner} reached {ratio:.3g} times its median" for learner, ratio in ratios.items() if ratio > 1e5]
    tried = (*PLACES, "on one rank only")
    bad = [one for one in failures if one.partition(":")[0] in tried]
    text = (
        f"{len(tried) - len(bad)} of {len(tried)} stopped in the same step; in ordinary runs of {len(learners)}"
        f" learners the largest norm of a meta-gradient is {max(ratios.values()):.3g} times the running median (a run"
        " stops at 1e6 times)"
    )
    return Measured(not failures, text, {"places": tried, "norms": ratios, "wrong": failures})


def _registry() -> Registry:
    return scan().with_plugin("learner", "slope", SlopeLearner).with_plugin("dataset", "slopes", Lines)


def train_in_two(out: str) -> None:
    """Train in two processes of which only rank 1 computes the marked episode; exit with the code of the error."""
    try:
        _train(Path(out), "pixel", _registry(), _STEP + 5, engine={"threads": 1, "reduce": "exact", "shards": 2})
    except DivergedError as error:
        raise SystemExit(error.exit_code) from error


def _on_one_rank_only(out: Path) -> list[str]:
    """Return what is wrong with how both ranks end when one of them meets a non-finite number."""
    codes = call_in_two(train_in_two, str(out), log=out.with_name("output"))
    status = json.loads((out / "status.json").read_text("utf-8"))
    outcome = (codes, status["exit_code"], status.get("steps"), checkpoint.load_latest(out / "ckpt")[0].step)
    return [] if outcome == ([6, 6], 6, _STEP - 1, _STEP - 1) else [f"it ended as {outcome}"]


def _train(out: Path, place: str, registry: Registry, steps: int, **settings: Any) -> metaforge.runs.run.Run:
    marked = {"marked": _JUMP_EPISODE if place == "jump" else _EPISODE, "pixel": place == "pixel"}
    train = {"steps": steps, "tasks": 3, "optimizer": "sgd", "lr": 0.01, **settings.pop("train", {})}
    values = {"task": {"ways": 1, "shots": 5, "queries": 5}, "train": train}
    values["engine"] = settings.pop("engine", {"threads": 1, "plan": "loop"})
    values |= {"evaluate": {"tasks": 2}, "dataset": marked | settings.pop("dataset", {}), "learner": {"place": place}}
    return metaforge.train("slope", "slopes", settings=values, out=out, registry=registry)


def _stopped(out: Path, place: str, registry: Registry) -> str:
    """Return what is wrong with how a run ends in which `place` fails, or an empty string."""
    step = _JUMP_STEP if place == "jump" else _STEP
    single = ("meta-gradient only", "optimiser", "optimiser state", "jump")
    names = ("slope",) if place in single else ("slope", "state.count")
    train = {"train": {"optimizer": "adam"}} if place == "optimiser state" else {}
    uninterrupted = _train(
        out.with_name(f"{place}-whole"), "none", registry, step - 1, dataset={"marked": -1, "pixel": False}, **train
    )
    try:
        with unittest.mock.patch.object(
            outer_optimizer, "torch_optimizer", _failing_optimizer if place == "optimiser" else _make_optimizer
        ):
            _train(out, place, registry, step + 5, dataset={"marked": -1} if place == "optimiser" else {}, **train)
    except DivergedError as error:
        message = str(error)
    else:
        return "it did not stop"
    status = json.loads((out / "status.json").read_text("utf-8"))
    if (status["exit_code"], status.get("steps", 0)) != (6, step - 1):
        return f"exit code {status['exit_code']} after step {status.get('steps', 0)}: {message}"
    episode = _JUMP_EPISODE if place == "jump" else _EPISODE
    named = str(episode) in message or f"{3 * (step - 1)} to {3 * step - 1}" in message
    if not named or not any(name in message for name in names):
        return f"it does not name parameter and episodes: {message}"
    try:
        saved, bad = checkpoint.load_latest(out / "ckpt")
    except CheckpointError as error:
        return str(error)
    same = all(torch.equal(saved.values[name], value) for name, value in uninterrupted.values.items())
    return "" if saved.step == step - 1 and not bad and same else f"the state of step {saved.step} is saved"


def _skipped_steps(workspace: Workspace, registry: Registry) -> list[str]:
    """Return what is wrong with runs that may skip failing steps."""
    failures = []
    run = _train(workspace.folder / "skip", "outer loss", registry, 6, train={"on_nonfinite": "skip"})
    if run.summary.get("skipped") != [_STEP] or run.summary["steps"] != 6:
        failures.append(f"with one failing step the summary is {run.summary}")
    for limit in (0, 2):
        out = workspace.folder / f"limit-{limit}"
        settings = {"train": {"on_nonfinite": "skip", "skip_limit": limit}, "dataset": {"more": True}}
        try:
            _train(out, "outer loss", registry, 20, **settings)
            failures.append(f"a limit of {limit} was not enforced")
        except DivergedError:
            steps = json.loads((out / "status.json").read_text("utf-8"))["steps"]
            if steps != _STEP - 1 + limit:
                failures.append(f"with a limit of {limit} it ended after step {steps}")
        shutil.rmtree(out)
    return failures + [
        message for optimizer in ("sgd", "adam") if (message := _rolled_back(workspace, registry, optimizer))
    ]


def _rolled_back(workspace: Workspace, registry: Registry, optimizer: str) -> str:
    """Return what is wrong with a run that skips a step after the optimiser has written, or an empty string."""
    train = {"on_nonfinite": "skip", "optimizer": optimizer}
    # In the first run the loss is infinite, so that the step is skipped before the optimiser is called.
    skipped_before = _train(
        workspace.folder / f"skipped-before-{optimizer}", "outer loss", registry, _STEP + 2, train=train
    )
    with unittest.mock.patch.object(outer_optimizer, "torch_optimizer", _failing_optimizer):
        skipped_after = _train(
            workspace.folder / f"skipped-after-{optimizer}",
            "none",
            registry,
            _STEP + 2,
            train=train,
            dataset={"marked": -1},
        )
    same = all(torch.equal(skipped_after.values[name], value) for name, value in skipped_before.values.items())
    skipped = (skipped_before.summary.get("skipped"), skipped_after.summary.get("skipped"))
    return (
        ""
        if same and skipped == ([_STEP], [_STEP])
        else f"{optimizer}: a skipped step has changed the values: {skipped}"
    )


def _largest_ratio(workspace: Workspace, learner: str, steps: int) -> float:
    """Return the largest norm of a meta-gradient in an ordinary run, in multiples of the median of those before it."""
    out = workspace.folder / learner
    values = small_runs.settings(learner, steps=min(steps, REMEMBERED))
    metaforge.train(values.pop("learner")["name"], settings=values, out=out)
    norms = checkpoint.load_latest(out / "ckpt")[0].facts["norms"]
    pairs = [(norm, statistics.median(norms[:index])) for index, norm in enumerate(norms) if index >= 20]
    return max((norm / max(median, 1e-3) for norm, median in pairs), default=0.0)
