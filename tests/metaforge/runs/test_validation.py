"""Validation: the scores of the first tasks of the split, whatever the chunks."""

from __future__ import annotations

from typing import Any

import torch

from metaforge.authoring.functional import one_task
from metaforge.authoring.kinds import score
from metaforge.authoring.protocols import TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.engine import processes
from metaforge.registry.scan import scan
from metaforge.runs.validation import validation_scores
from metaforge.runs.worker import Worker

SETTINGS: dict[str, Any] = {"learner": {"name": "maml", "test_steps": 2}, "dataset": {"name": "sinusoid"}}


def scores(chunk: int | None) -> tuple[Worker, list[float]]:
    layer = Layer("test", SETTINGS | {"engine": {"threads": 1} | ({"chunk": chunk} if chunk else {})})
    with processes.world(torch.device("cpu")) as world:
        worker = Worker(resolve([layer], scan()), world)
        return worker, validation_scores(worker, worker.initial(), 7, 1)


def test_scores_are_those_of_each_task_alone() -> None:
    worker, found = scores(None)
    values, dataset, shape = worker.initial(), worker.parts.dataset, TaskShape(1, 10, 10)
    learner = worker.parts.learner(dataset.spec("val", shape))
    assert len(found) == 7
    for number, value in enumerate(found):
        task = one_task(dataset.sample("val", shape, number, 1, seed=worker.settings.evaluate.seed))
        with torch.no_grad():
            prediction = learner.predict(values, learner.adapt(values, task.support), task.query.x)
        torch.testing.assert_close(torch.tensor(value), score("regression", prediction, task.query.y))
    torch.testing.assert_close(torch.tensor(scores(3)[1]), torch.tensor(found))
