"""Rounds of a stream: the new task is scored before it is learned from, and steps draw tasks that have arrived."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge import hookimpl
from metaforge.authoring.functional import one_task
from metaforge.authoring.kinds import CLASSIFICATION, REGRESSION, score
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.engine import processes
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.runs.resume import configuration
from metaforge.runs.rounds import first_examples, round_metrics
from metaforge.runs.training import run_training
from metaforge.runs.worker import Worker
from tests.reliability.interruptions import StopAfter

STREAM = {"order": "stream", "round": 3, "tasks": 2, "proficiency": 2.0, "log_every": 50}
SINUSOID: dict[str, Any] = {
    "learner": {"name": "maml"},
    "dataset": {"name": "sinusoid"},
    "train": STREAM,
    "engine": {"threads": 1},
}
CLOCK = {"elapsed", "eta", "tasks_per_second"}


def worker_of(settings: dict[str, Any]) -> Worker:
    with processes.world(torch.device("cpu")) as world:
        return Worker(resolve([Layer("test", settings)], scan()), world)


def scored(worker: Worker, task: Task) -> float:
    values, learner = worker.initial(), worker.learner
    with torch.no_grad():
        prediction = learner.predict(values, learner.adapt(values, task.support), task.query.x)
    return float(score("regression", prediction, task.query.y))


def test_the_new_task_of_a_round_is_scored_on_each_number_of_examples() -> None:
    worker = worker_of(SINUSOID)
    assert not round_metrics(worker, worker.initial(), 2)
    assert not round_metrics(worker, worker.initial(), 3)
    reached = set()
    for number in range(8):
        found = round_metrics(worker, worker.initial(), 3 * number + 1)
        task = one_task(worker.parts.dataset.sample("train", TaskShape(1, 10, 10), number, 1, seed=0))
        by_count = [
            scored(worker, task._replace(support=Examples(task.support.x[:count], task.support.y[:count])))
            for count in range(1, 11)
        ]
        assert found["round"] == number
        assert found["round_loss"] == found["round_score"] == pytest.approx(by_count[-1], rel=1e-5)
        good = [count for count, value in enumerate(by_count, 1) if value <= 2.0]
        assert found["round_examples"] == (good[0] if good else math.inf)
        reached.add(bool(good))
    assert reached == {True, False}


def test_without_a_proficiency_only_the_whole_support_set_is_scored() -> None:
    worker = worker_of(SINUSOID | {"train": STREAM | {"proficiency": "none"}})
    assert set(round_metrics(worker, worker.initial(), 1)) == {"round", "round_loss", "round_score"}
    fresh = worker_of(SINUSOID | {"train": {"tasks": 2}})
    assert not round_metrics(fresh, fresh.initial(), 1)


def test_the_first_examples_are_those_of_each_class() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1)
    y = torch.tensor([[1, 0, 1, 1, 0, 0]])
    one, two = (first_examples(Examples(x, y), count, CLASSIFICATION) for count in (1, 2))
    assert (one.x.flatten().tolist(), one.y.tolist()) == ([0, 1], [[1, 0]])
    assert (two.x.flatten().tolist(), two.y.tolist()) == ([0, 1, 2, 4], [[1, 0, 1, 0]])
    curve = first_examples(Examples(x, x), 4, REGRESSION)
    assert curve.x.flatten().tolist() == [0, 1, 2, 3]


class Seen:
    """Keeps the first inputs of every task of every step."""

    def __init__(self) -> None:
        self.inputs: list[list[torch.Tensor]] = []

    @hookimpl
    def metaforge_before_step(self, batches: Sequence[Task]) -> None:
        self.inputs.append([task for batch in batches for task in batch.support.x])


def begun(out: Path, stop: int | None = None) -> Seen:
    seen = Seen()
    hooks = [seen] if stop is None else [seen, StopAfter(stop)]
    settings = {"train": STREAM, "engine": {"threads": 1, "compile": "off"}}
    try:
        metaforge.train("maml", "sinusoid", steps=9, settings=settings, out=out, hooks=hooks)
    except KeyboardInterrupt:
        assert stop is not None
    return seen


def rounds(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows if "round" in row]


def test_steps_learn_from_tasks_that_have_arrived_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    seen = begun(tmp_path / "whole")
    arrived = metaforge.load(tmp_path / "whole").dataset.sample("train", TaskShape(1, 10, 10), 0, 9, seed=0).support.x
    numbers = [[next(n for n in range(9) if torch.equal(x, arrived[n])) for x in step] for step in seen.inputs]
    assert len(numbers) == 9
    assert all(number <= step // 3 for step, own in enumerate(numbers) for number in own)
    assert len({number for own in numbers for number in own}) > 1
    assert [row["round"] for row in rounds(tmp_path / "whole")] == [0, 1, 2]
    begun(tmp_path / "cut", stop=4)
    run_training(configuration(tmp_path / "cut", [], scan()), folder=tmp_path / "cut", resuming=True)
    assert rounds(tmp_path / "cut") == rounds(tmp_path / "whole")
    values = [metaforge.load(tmp_path / name).values for name in ("cut", "whole")]
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[1])


@pytest.mark.parametrize(
    ("more", "where"), [({"shots": [2, 3]}, "train.shots"), ({"sampler": "varied"}, "train.sampler")]
)
def test_tasks_of_several_shapes_are_refused(more: dict[str, Any], where: str) -> None:
    glyphs = {"name": "glyphs", "train": 20, "val": 5, "test": 10, "writers": 16}
    settings = SINUSOID | {"dataset": glyphs, "train": STREAM | more, "varied": {"max_ways": 5}}
    with pytest.raises(ConfigError, match="tasks of a stream have one shape") as caught:
        worker_of(settings)
    assert caught.value.where == where
