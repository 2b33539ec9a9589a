"""A task dimension is merged into another dimension, as its outer part, and split off again."""

from __future__ import annotations

import pytest
import torch

from metaforge.kernels.task_axis import merge_tasks, split_tasks

X = torch.arange(24).view(2, 3, 4)


@pytest.mark.parametrize("into", [0, 1])
@pytest.mark.parametrize("task_dim", [0, 1, 2])
def test_the_tasks_lie_side_by_side_in_the_dimension(task_dim: int, into: int) -> None:
    tasks = X.unbind(task_dim)
    merged = merge_tasks(X, task_dim, into, len(tasks))
    assert torch.equal(merged, torch.cat(tasks, into))
    assert torch.equal(split_tasks(merged, into, len(tasks)), torch.stack(tasks, into))


@pytest.mark.parametrize("into", [0, 1, 2])
def test_a_tensor_that_tasks_share_is_repeated_for_each(into: int) -> None:
    assert torch.equal(merge_tasks(X, None, into, 3), torch.cat([X, X, X], into))
