"""The two baselines on tasks whose answer is known."""

from __future__ import annotations

import pytest
import torch

from fake_runs import Pixels
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.results.baselines import chance_level, nearest_neighbour


def test_baselines_of_a_classification_task() -> None:
    support = Examples(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 2]))
    query = Examples(torch.tensor([[0.1], [0.9], [1.0], [0.4]]), torch.tensor([0, 1, 2, 1]))
    # Two examples are equally near to the third query: the first is used, and its class is 1.
    assert nearest_neighbour("classification", Task(support, query)) == 0.5
    assert chance_level("classification", Task(support, query), 3) == pytest.approx(1 / 3)


def test_baselines_of_a_regression_task() -> None:
    """y = 2 x with support at 0 and 2: the mean of the support is 2, the nearest targets of the queries 0 and 4."""
    support = Examples(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    query = Examples(torch.tensor([[0.5], [1.5]]), torch.tensor([[1.0], [3.0]]))
    assert nearest_neighbour("regression", Task(support, query)) == 1.0
    assert chance_level("regression", Task(support, query), 1) == 1.0


def test_bytes_and_floats_have_the_same_nearest_neighbour() -> None:
    dataset = Pixels()
    batch = dataset.sample("test", TaskShape(3, 1, 2), 1, 1, seed=0)
    task = Task(*(Examples(part.x[0], part.y[0]) for part in batch))
    floats = Task(*(Examples(part.x / 255, part.y) for part in task))
    assert nearest_neighbour("classification", task) == nearest_neighbour("classification", floats) == 0.0
