"""Several batches as one outer step: means of gradients and state changes, and the metrics of all tasks."""

from __future__ import annotations

import pytest
import torch

from metaforge.engine.accumulation import mean_step
from metaforge.engine.batch import MetaStep
from metaforge.errors import ContractError


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


@pytest.mark.parametrize("names", [("score", "of_3"), ("of_3", "score")])
def test_metrics_that_only_one_batch_has_are_refused(names: tuple[str, str]) -> None:
    """Those of the first batch were looked up in all, and others of later ones were dropped."""
    steps = [step(1.0), step(2.0)]
    for one, name in zip(steps, names, strict=True):
        one.metrics[name] = one.losses
    with pytest.raises(ContractError, match=r"tasks of two shapes have different metrics: of_3$"):
        mean_step(steps)
