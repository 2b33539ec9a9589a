"""The gradients of a chunk are the weighted sums of the gradients of its tasks, under every plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_toys import maml
from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.protocols import Params, Task
from metaforge.engine.chunks import ByTask, chunk_forward, chunk_gradients
from metaforge.engine.plans import Plan
from toys import fresh, keys, tasks


def task_list(batch: Task) -> list[Task]:
    return [one_task(batch, index) for index in range(len(batch.support.x))]


def loss_of(built: Any, state: Params, task: Task, key: Tensor) -> Callable[[Params], tuple[Tensor, Any]]:
    def loss(params: Params) -> tuple[Tensor, Any]:
        value, aux = built.loss(params | state, task, key)
        return value, (value, aux)

    return loss


@pytest.mark.parametrize(("plan", "count"), [("loop", 1), ("vmap", 3), ("fold", 3)])
def test_the_gradient_of_a_chunk_is_the_weighted_sum_over_its_tasks(plan: Plan, count: int) -> None:
    built = maml("running")
    params, state = split_state(fresh(built))
    batch, weights = tasks(count), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)[:count]
    result, grads = chunk_gradients(built, plan)(weights, params, state, batch, keys(count))
    assert result.losses.shape == (count,)
    assert all(metric.shape == (count,) for metric in result.metrics.values())
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for task, key, weight, loss, metric in zip(
        *(task_list(batch), keys(count), weights, result.losses, result.metrics["score"]), strict=True
    ):
        gradient, (own_loss, aux) = torch.func.grad(loss_of(built, state, task, key), has_aux=True)(params)
        torch.testing.assert_close(loss, own_loss)
        torch.testing.assert_close(metric, aux.metrics["score"])
        expected = {name: value + weight * gradient[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("plan", "count"), [("loop", 1), ("vmap", 3), ("fold", 3)])
def test_the_pullback_takes_weights_that_are_known_later(plan: Plan, count: int) -> None:
    built = maml()
    params, state = split_state(fresh(built))
    weights = torch.linspace(1, 2, count, dtype=torch.float64)
    result, pullback = chunk_forward(built, plan)(params, state, tasks(count), keys(count))
    assert not any(tensor.requires_grad for tensor in (result.losses, *result.metrics.values(), *result.state.values()))
    known, grads = chunk_gradients(built, plan)(weights, params, state, tasks(count), keys(count))
    assert torch.equal(result.losses, known.losses)
    for name, value in pullback(ByTask(weights)).items():
        assert torch.equal(value, grads[name])
        assert not value.requires_grad


def test_the_change_of_the_state_is_the_mean_over_the_tasks() -> None:
    built = maml("running")
    params, state = split_state(fresh(built))
    changes = [
        built.loss(params | state, task, key)[1].state for task, key in zip(task_list(tasks(3)), keys(3), strict=True)
    ]
    for plan in ("vmap", "fold"):
        result, _ = chunk_forward(built, plan)(params, state, tasks(3), keys(3))  # type: ignore[arg-type]
        for name, mean in result.state.items():
            torch.testing.assert_close(mean, torch.stack([change[name] for change in changes]).mean(0))
