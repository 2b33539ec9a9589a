"""An outer optimiser and a schedule of a third party are checked, trained, killed and resumed to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

import metaforge
from metaforge.authoring import Optimizer, Options, Schedule
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from metaforge.testing import Check, Subject, parametrize_with_checks
from tests.reliability.interruptions import StopAfter


class LookaheadOptions(Options):
    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the running sum of gradients")
    every: int = Field(5, ge=1, description="steps between two steps of the slow weights")
    alpha: float = Field(0.5, gt=0, le=1, description="size of a step of the slow weights")


class Lookahead(Optimizer):
    """SGD with momentum, whose slow weights follow every few steps (Zhang, Lucas, Hinton, Ba 2019)."""

    Config = LookaheadOptions

    def __init__(self, config: LookaheadOptions) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return LookaheadSGD(groups, self.config.model_dump())


class LookaheadSGD(torch.optim.Optimizer):
    """Counts in a number of the group; the momentum and the slow weights, which begin late, are tensors."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for param in group["params"]:
                state = self.state[param]
                velocity = state.setdefault("velocity", torch.zeros_like(param))
                velocity.mul_(group["momentum"]).add_(param.grad, alpha=group["lr"])
                param.sub_(velocity)
                if group["count"] % group["every"] == 0:
                    slow = state.setdefault("slow", param.clone())
                    param.copy_(slow.lerp_(param, group["alpha"]))


class Sawtooth(Schedule):
    """Falls within a period and begins again, until the last tenth of the run, in which it is small."""

    class Config(Options):
        period: int = Field(4, ge=1, description="outer steps of a period")

    def __init__(self, config: Any) -> None:
        self.period = config.period

    def factor(self, step: int, share: float) -> float:
        return 0.01 if share >= 0.9 else 1 - 0.5 * (step % self.period) / self.period


REGISTRY = scan().with_plugin("optimizer", "lookahead", Lookahead).with_plugin("schedule", "sawtooth", Sawtooth)
SETTINGS: dict[str, Any] = {
    "learner": "maml",
    "dataset": "sinusoid",
    "optimizer": {"name": "lookahead", "every": 3},
    "schedule": "sawtooth",
    "adapters": {"meta-sgd": {"lr": 0.01}},
    "backbone": {"name": "mlp", "widths": [8]},
    "train": {
        "steps": 11,
        "tasks": 2,
        "lr": 0.02,
        "warmup": 2,
        "accumulate": 2,
        "clip_value": 0.5,
        "groups": {"adapters.*": {"lr": 0.001, "min": 0.0}},
    },
    "engine": {"threads": 1},
}


def settled(**more: Any) -> Any:
    return resolve([Layer("test", SETTINGS), Layer("more", more)], REGISTRY)


def resumed(folder: Path, **settings: Any) -> Any:
    config = configuration(folder, [Layer("keyword", settings)], REGISTRY)
    return run_training(config, folder=folder, resuming=True)


def last(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load_latest(folder / "ckpt")[0]


@parametrize_with_checks(
    [
        Subject("optimizer", "lookahead", Lookahead, registry=REGISTRY),
        Subject("schedule", "sawtooth", Sawtooth, registry=REGISTRY),
    ]
)
def test_they_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_training(settled(), folder=folder)
    return last(folder)


# The slow weights begin in the third step, so a checkpoint of the second one has none.
@pytest.mark.parametrize("stop", [1, 2, 3, 7])
def test_a_killed_run_is_resumed_to_the_bit(whole: checkpoint.Checkpoint, tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_training(settled(), folder=tmp_path / "run", hooks=[StopAfter(stop)])
    assert last(tmp_path / "run").step == stop
    run = resumed(tmp_path / "run")
    assert run.summary["resumed"]["exact"]
    again = last(tmp_path / "run")
    assert again.step == whole.step == 11
    assert {name.partition(".")[0] for name in again.training} == {"velocity", "slow"}
    assert again.facts["scalars"] == whole.facts["scalars"] == {"group 0.count": 11, "group 1.count": 11}
    tensors: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (again.values, whole.values),
        (again.training, whole.training),
    ]
    for ours, theirs in tensors:
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.facts["window"] == whole.facts["window"]


def test_they_train_and_the_group_keeps_its_bounds(tmp_path: Path) -> None:
    scores = []
    for steps in (0, 40):
        train = {"steps": steps, "accumulate": 1, "tasks": 16}
        resolved = settled(train=train, backbone={"name": "mlp", "widths": [32]})
        run = run_training(resolved, folder=tmp_path / f"{steps}")
        scores.append(run.evaluate(tasks=100)["results"][0]["scores"][-1]["mean"])
    assert scores[1] < 0.95 * scores[0]
    rates = [value for name, value in run.values.items() if name.startswith("adapters.")]
    assert all(bool((value >= 0).all()) for value in rates)
    assert any(bool((value == 0).any()) for value in rates)


class Closure(Lookahead):
    """Needs a closure."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS([param for group in groups for param in group["params"]])


class Hidden(Lookahead):
    """Keeps tensors in an attribute."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        class Attribute(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                self.past = [group["params"][0].clone() for group in self.param_groups]
                return super().step(closure)

        return Attribute(groups)


class Raising(Lookahead):
    """Fails in its step."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SparseAdam([param for group in groups for param in group["params"]])


class Falling(Sawtooth):
    """Has a negative factor in the second step."""

    def factor(self, step: int, share: float) -> float:
        return 1.0 - 2 * step


@pytest.mark.parametrize(
    ("kind", "cls", "sentence", "folder_is_left"),
    [
        ("optimizer", Closure, r"optimizer 'own' of python breaks its contract in its build.*needs 'closure'", False),
        ("optimizer", Hidden, r"'own' of python breaks .* at outer step 1: its attribute 'past'", True),
        ("optimizer", Raising, r"optimizer 'own' of python raised RuntimeError in its step at outer step 1", True),
        ("schedule", Falling, r"schedule 'own' of python breaks .* outer step 2: factor returns -1\.0", True),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, kind: str, cls: type[Any], sentence: str, folder_is_left: bool
) -> None:
    registry = scan().with_plugin(kind, "own", cls)
    with pytest.raises(PluginError, match=sentence):
        metaforge.train("maml", "sinusoid", steps=3, tasks=2, out=tmp_path / "run", registry=registry, **{kind: "own"})
    assert (tmp_path / "run").exists() == folder_is_left


def test_a_pattern_without_parameters_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'adapter\.\*' applies to nothing") as caught:
        metaforge.train(
            "maml",
            "sinusoid",
            steps=1,
            out=tmp_path / "run",
            adapters=["meta-sgd"],
            settings={"train": {"groups": {"adapter.*": {"lr": 0.1}}}},
        )
    assert "adapters.meta-sgd.rate." in caught.value.remedy
    assert not (tmp_path / "run").exists()
