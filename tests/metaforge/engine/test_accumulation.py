"""Several batches as one outer step: means of gradients and state changes, and the metrics of all tasks."""

from __future__ import annotations

import torch

from metaforge.engine.accumulation import mean_step
from metaforge.engine.batch import MetaStep


def step(value: float, tasks: int = 2) -> MetaStep:
    losses = torch.full((tasks,), value)
    return MetaStep({"w": torch.tensor([value, 1.0])}, {"state.n": torch.tensor(value)}, losses, {"score": -losses})


def test_one_batch_is_returned_as_it_is() -> None:
    only = step(0.1)
    found = mean_step(iter([only]))
    assert found.grads["w"] is only.grads["w"]
    assert found.losses is only.losses


def test_gradients_are_averaged_and_tasks_joined() -> None:
    found = mean_step(step(value) for value in (1.0, 2.0, 6.0))
    assert found.grads["w"].tolist() == [3.0, 1.0]
    assert float(found.state["state.n"]) == 3.0
    assert found.losses.tolist() == [1, 1, 2, 2, 6, 6]
    assert found.metrics["score"].tolist() == [-1, -1, -2, -2, -6, -6]
