"""The types that plugins and the engine exchange: what vmap accepts, what is frozen, what the default values are."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metaforge.authoring.protocols import (
    STATE,
    Aux,
    BatchNormPolicy,
    Examples,
    NormPolicy,
    Pass,
    Task,
    TaskShape,
    TaskSpec,
)
from toys import tasks


def test_tasks_and_aux_cross_vmap() -> None:
    def describe(task: Task) -> tuple[Task, Aux]:
        assert isinstance(task, Task)
        assert isinstance(task.support, Examples)
        return task, Aux({"mean": task.query.x.mean()}, {"state.sum": task.support.x.sum()})

    batch = tasks(3)
    same, aux = vmap(describe)(batch)
    assert isinstance(same, Task)
    assert torch.equal(same.query.x, batch.query.x)
    assert isinstance(aux, Aux)
    assert aux.metrics["mean"].shape == aux.state["state.sum"].shape == (3,)


def test_a_key_in_a_pass_is_an_argument_like_any_other() -> None:
    def key_of(key: Tensor) -> Tensor:
        at = Pass(key, step=1)
        assert at.key is not None
        return at.key

    keys = torch.arange(4)
    assert torch.equal(vmap(key_of)(keys), keys)


def test_a_pass_is_by_default_a_query_pass_in_evaluation() -> None:
    assert Pass() == (None, 0, "query", 0)


def test_a_spec_is_frozen_and_hashable() -> None:
    spec = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, 15))
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.outputs = 6  # type: ignore[misc]


def test_every_batch_norm_policy_is_a_norm_policy() -> None:
    assert set(get_args(NormPolicy)) == {*get_args(BatchNormPolicy), "per-step"}


def test_the_state_prefix_ends_with_a_dot() -> None:
    # A parameter called `statement` is no state entry.
    assert STATE == "state."
