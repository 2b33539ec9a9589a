"""Kinds of tasks as a third party uses them: a kind of its own, labels, and a learner that acts in an environment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metaforge
from metaforge.authoring import (
    INTERACTION,
    MULTI_LABEL,
    Aux,
    Dataset,
    Examples,
    Fast,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    Scale,
    Tags,
    Task,
    TaskKind,
    TaskShape,
    TaskSpec,
    fold_in,
    make_key,
    nearest_targets,
    normal,
    uniform,
)
from metaforge.cli.describe import description, description_text
from metaforge.errors import ConfigError, DataError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.results.comparison import main as compare
from metaforge.results.records import read_evaluations
from metaforge.runs import checkpoint
from metaforge.testing import Subject, checks_for


class Sampled(Dataset):
    """Base of the data sets below: tasks of one way, each drawn from a key."""

    Config = Options
    x_shape: ClassVar[tuple[int, ...]] = (2,)
    outputs: ClassVar[int] = 1

    def __init__(self, config: Options, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec; raise `DataError` for an unknown split or several ways."""
        if split not in ("train", "val", "test") or shape.ways != 1:
            raise DataError(f"There are no tasks of {shape.ways} ways in {split!r}.", remedy="use 1 way")
        return TaskSpec(self.kind, self.x_shape, self.outputs, shape)  # type: ignore[arg-type]

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return the episodes of these numbers."""
        self.spec(split, shape)
        keys = torch.stack([make_key(seed, split, first + i) for i in range(count)])
        return torch.func.vmap(lambda key: self.episode(key, shape))(keys)

    def facts(self, split: str) -> Mapping[str, str]:
        """Return what the tasks are."""
        return {"tasks": "drawn from the seed"}

    def episode(self, key: Key, shape: TaskShape) -> Task:
        """Return the task of a key."""
        raise NotImplementedError


# A kind of its own: the prediction has two numbers, the target is one angle, and the score is in degrees.
def direction_loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance of the prediction to the point of the unit circle at the angle."""
    return (prediction - torch.cat([y.cos(), y.sin()], -1)).square().sum(-1).mean()


def degrees(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean angle between the predicted and the true direction, in degrees."""
    difference = torch.atan2(prediction[:, 1], prediction[:, 0]) - y[:, 0]
    return torch.atan2(difference.sin(), difference.cos()).abs().mean() * (180 / math.pi)


def nearest_direction(task: Task, spec: TaskSpec) -> Tensor:
    """Return the score of giving each query the angle of the nearest support example."""
    angles = nearest_targets(task)
    return degrees(torch.cat([angles.cos(), angles.sin()], -1), task.query.y)


ANGLES = TaskKind(
    "angles",
    direction_loss,
    degrees,
    Scale(
        "angular error", higher_is_better=False, unit="°", minimum=0.0, floor="nearest direction", examples="bearings"
    ),
    floor=nearest_direction,
    target_shape=(1,),
)


class Compass(Sampled):
    """Each task turns the direction of a point by an angle of its own."""

    kind: ClassVar[TaskKind] = ANGLES
    outputs = 2
    defaults: ClassVar = {
        "angles": {
            "task": {"ways": 1, "shots": 5, "queries": 10},
            "backbone": {"name": "mlp"},
            "adapters": {"sgd": {"lr": 0.1}},
        }
    }

    def episode(self, key: Key, shape: TaskShape) -> Task:
        """Return the task of a key: an angle in [0, π]."""
        turn = math.pi * uniform(fold_in(key, "turn"), ())

        def examples(part: str, count: int) -> Examples:
            x = normal(fold_in(key, part), (count, 2))
            return Examples(x, torch.atan2(x[:, 1:], x[:, :1]) + turn)

        return Task(examples("support", shape.shots), examples("query", shape.queries))


class Fences(Sampled):
    """Three labels of points in the plane: each is set on one side of a line that differs from task to task."""

    kind: ClassVar[TaskKind] = MULTI_LABEL
    outputs = 3
    defaults: ClassVar = {"multi-label": {"task": {"ways": 1, "shots": 10, "queries": 10}, "backbone": {"name": "mlp"}}}

    def episode(self, key: Key, shape: TaskShape) -> Task:
        """Return the task of a key: three lines."""
        lines = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 2.0]]) + normal(fold_in(key, "lines"), (3, 2))

        def examples(part: str, count: int) -> Examples:
            x = normal(fold_in(key, part), (count, 2))
            return Examples(x, (x @ lines.T > 0).float())

        return Task(examples("support", shape.shots), examples("query", shape.queries))


class Plain(Sampled):
    """Rollouts in the plane: the input of each is its goal, which is the same for all rollouts of a task."""

    kind: ClassVar[TaskKind] = INTERACTION
    defaults: ClassVar = {
        "interaction": {
            "task": {"ways": 1, "shots": 4, "queries": 4},
            "backbone": {"name": "mlp", "widths": [16]},
        }
    }

    def episode(self, key: Key, shape: TaskShape) -> Task:
        """Return the task of a key: a goal in [-1, 1]²."""
        goal = 2 * uniform(fold_in(key, "goal"), (2,)) - 1
        return Task(*(Examples(goal.expand(n, 2), torch.zeros(n, 1)) for n in (shape.shots, shape.queries)))


class Navigator(InnerLoopLearner):
    """Learns a policy that finds an unseen goal after a few gradient steps on the returns of its support rollouts.

    The environment is a point that moves by the policy's action plus noise; a rollout has five steps, and its return is
    minus the mean squared distance to the goal. The policy sees the position alone.
    """

    Config = InnerLoopOptions
    tags: ClassVar[Tags] = replace(
        InnerLoopLearner.tags,
        kinds=frozenset({"interaction"}),
        stochastic=True,
        other_kinds=False,
        varied_shots=False,
        terms=frozenset(),
    )
    defaults: ClassVar = {"interaction": {"learner": {"steps": 2, "test_steps": 2}, "adapters": {"sgd": {"lr": 0.1}}}}

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        # The head has one output per coordinate of the action, not per return.
        super().__init__(config, parts, outputs=math.prod(parts.spec.x_shape))

    def returns(self, values: Params, goals: Tensor, key: Key | None) -> Tensor:
        """Return the returns `[n, 1]` of a rollout towards each goal `[n, *x_shape]`."""
        position, total = torch.zeros_like(goals), goals.new_zeros(len(goals), 1)
        for time in range(5):
            # Without a key: the noise of the environment is not that of the network.
            action = self.model(values, position, Pass(None)).reshape(goals.shape)
            if key is not None:
                action = action + 0.1 * normal(fold_in(key, time), goals.shape, goals.dtype)
            position = position + 0.5 * action
            total = total - (position - goals).square().flatten(1).sum(-1, keepdim=True) / 5
        return total

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return minus the mean return of the support rollouts."""
        return self.criterion(self.returns(values, batch.x, None if key is None else fold_in(key, step)), batch.y), {}

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return minus the mean return of rollouts with the adapted policy."""
        fast, state = self.descend(values, task.support, self.config.steps, fold_in(key, "support"))
        returns = self.predict(values, fast, task.query.x, key=fold_in(key, "query"))
        score = self.spec.kind.score(returns, task.query.y).detach()
        return self.spec.kind.loss(returns, task.query.y), Aux({"score": score}, state)

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the returns `[n, 1]` of rollouts with the adapted policy."""
        return self.returns(values | fast, x, key)


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Return the installed plugins and those of this file."""
    found = scan().with_plugin("learner", "navigator", Navigator)
    for name, cls in (("compass", Compass), ("fences", Fences), ("plain", Plain)):
        found = found.with_plugin("dataset", name, cls)
    return found


CHECKS = [
    (check, subject)
    for subject in (Subject.of(Compass), Subject.of(Fences), Subject.of(Plain), Subject.of(Navigator))
    for check in checks_for(subject)
]


@pytest.mark.parametrize(
    ("check", "subject"), CHECKS, ids=[f"{subject.name}-{check.name}" for check, subject in CHECKS]
)
def test_the_conformance_kit_passes(check: Any, subject: Subject) -> None:
    check(subject)


def train(
    learner: Any, dataset: str, folder: Path, registry: Registry, *, compile: str = "off", **settings: Any
) -> Any:
    """Train on tasks of a data set, with a validation at every 25th step, and return the run."""
    train = {"log_every": 10, "lr": 3e-3, "validate_every": 25, "validate_tasks": 10, **settings.pop("train", {})}
    return metaforge.train(
        learner,
        dataset,
        out=folder,
        registry=registry,
        settings={"engine": {"threads": 1, "compile": compile}, "train": train, **settings},
    )


def test_a_kind_of_its_own_is_trained_evaluated_compared_and_reported(
    registry: Registry, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, hooks = tmp_path / "run", {"progress": {"interval": 0.0}, "early-stop": {"patience": 100}}
    run = train("maml", "compass", folder, registry, train={"steps": 100, "tasks": 4}, hooks=hooks)
    summary = run.evaluate(tasks=30)
    (result,) = summary["results"]
    before, after = (one["mean"] for one in result["scores"])
    assert after < 0.7 * before
    assert (result["metric"], result["kind"], result["chance"]) == ("angular error", "angles", None)
    assert result["scale"]["unit"] == "°"
    assert result["floor"]["mean"] > 0
    # Validation, early stopping and the best checkpoint follow the direction of the kind.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row["val_score"] for row in rows if "val_score" in row}
    assert checkpoint.best(folder / "ckpt") == min(validated, key=lambda step: validated[step])
    shown = capfd.readouterr().err
    assert "score " in shown
    assert " °" in shown
    for text in ((folder / "report.md").read_text(), _compared(folder, tmp_path)):
        assert "5 bearings" in text
        assert "nearest direction" in text
        assert "angular error" in text
        assert " °" in text
        assert "chance" not in text
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        "training.png",
        "scores-test-1w5s.png",
        "steps-test.png",
    }


def _compared(folder: Path, tmp_path: Path) -> str:
    """Return the page that compares a run with itself; it is written without any plugin."""
    assert compare([str(tmp_path / "compared.md"), str(folder)]) == 0
    return (tmp_path / "compared.md").read_text()


def test_its_data_set_is_described_and_refused_to_learners_of_other_kinds(registry: Registry, tmp_path: Path) -> None:
    text = description_text(description(registry, registry.find("dataset", "compass")))
    assert "kind: angles" in text
    assert re.search(r"metaforge train --learner [\w-]+ --dataset compass", text)
    for learner, kinds in (("protonet", "classification"), ("cnp", "regression"), ("navigator", "interaction")):
        with pytest.raises(ConfigError, match=f"solves {kinds} tasks, but the data set 'compass' has angles tasks"):
            train(learner, "compass", tmp_path / "none", registry)
    with pytest.raises(ConfigError, match="the data set 'plain' has interaction tasks"):
        train("maml", "plain", tmp_path / "none", registry)


@pytest.mark.parametrize("learner", ["maml", "fomaml"])
def test_labels_are_learned(learner: str, registry: Registry, tmp_path: Path) -> None:
    run = train(learner, "fences", tmp_path / "run", registry, train={"steps": 50, "tasks": 4, "lr": 1e-2})
    untrained = replace(run, values=run.learner().init(make_key(0)), folder=None).evaluate(tasks=30)
    (result,), (first,) = run.evaluate(tasks=30)["results"], untrained["results"]
    trained, start = result["scores"][-1]["mean"], first["scores"][-1]["mean"]
    assert trained > start + 0.1
    # A tenth of the labels are wrong, where the majority of the support set gets half of them wrong.
    assert trained > 0.85 > result["floor"]["mean"]
    assert result["chance"]["mean"] < 0.6
    assert (result["metric"], result["scale"]["percent"]) == ("label accuracy", True)
    assert "accuracy per label" in (tmp_path / "run" / "report.md").read_text()
    assert "support majority" in (tmp_path / "run" / "report.md").read_text()


def test_a_learner_that_acts_increases_its_return(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train("navigator", "plain", folder, registry, train={"steps": 50, "tasks": 4, "lr": 1e-2})
    (result,) = run.evaluate(tasks=30)["results"]
    before, after = (one["mean"] for one in result["scores"])
    # The adapted policy goes to a goal that it does not see: a policy that stays where it is returns -2/3.
    assert before < -0.5
    assert after > -0.1
    assert (result["chance"], result["floor"]) == (None, None)
    # The noise of the environment comes from the seed of the evaluation.
    assert run.evaluate(tasks=30)["results"][0]["scores"] == result["scores"]
    text = (folder / "report.md").read_text() + _compared(folder, tmp_path)
    assert "mean return" in text
    assert "4 rollouts" in text
    assert not any(word in text for word in ("chance", "nearest neighbour", "None", "nan"))
    (record,) = read_evaluations(folder)
    assert min(record["per_task"]["scores"]["0"]) < 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row["val_score"] for row in rows if "val_score" in row}
    assert checkpoint.best(folder / "ckpt") == max(validated, key=lambda step: validated[step])
