"""Checks of what a learner returns and changes: valid values pass, and each invalid one is described."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metaforge.authoring.functional import prefixed
from metaforge.authoring.progress import training_progress
from metaforge.authoring.protocols import SHARE, STATE, STEP, Aux, Examples, Tags, Task
from metaforge.engine.contract import (
    checked_learner,
    checked_loss,
    checked_values,
    require_same_metrics,
    unmodified,
)
from metaforge.errors import ContractError

LOSS = torch.tensor(0.5)
VALUES = {"state.mean": torch.zeros(3)}


def test_the_attributes_of_a_learner_have_the_types_of_the_protocol() -> None:
    learner = SimpleNamespace(tags=Tags(), norm="none", transductive=False, steps=0)
    assert checked_learner(learner) is learner
    for name, value, message in (
        ("tags", Tags, "tags is of type type, not Tags"),
        ("norm", None, "norm is of type NoneType, not str"),
        ("transductive", 1, "transductive is of type int, not bool"),
        ("steps", 1.0, "steps is of type float, not int"),
        ("steps", -1, "steps is -1, but should be 0 or more"),
    ):
        with pytest.raises(ContractError, match=message):
            checked_learner(SimpleNamespace(**{**vars(learner), name: value}))
    with pytest.raises(ContractError, match="tags is of type NoneType"):
        checked_learner(object())


def test_a_valid_loss_passes() -> None:
    aux = Aux({"score": torch.tensor(1)}, {"state.mean": torch.ones(3)})
    assert checked_loss((LOSS, aux), VALUES) == (LOSS, aux)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "loss returns an object of type NoneType, not a pair"),
        (LOSS, r"loss returns a tensor of torch.float32 and shape \[\], not a pair"),
        ((LOSS, None), "loss returns an object of type tuple, not a pair of a scalar tensor and an Aux"),
        ((0.5, Aux({})), "the loss is an object of type float"),
        ((torch.ones(2), Aux({})), r"the loss is a tensor of torch.float32 and shape \[2\]"),
        ((torch.tensor(1), Aux({})), "the loss is a tensor of torch.int64"),
        ((torch.ones((), device="meta"), Aux({})), "the loss is a meta tensor"),
        ((LOSS, Aux({"score": 0.5})), "the metric 'score' is an object of type float"),  # type: ignore[dict-item]
        ((LOSS, Aux({"score": torch.ones(2)})), "the metric 'score' is a tensor"),
        ((LOSS, Aux({}, {"mean": torch.ones(3)})), "Aux.state has 'mean', but the values have no state entry"),
        ((LOSS, Aux({}, {"state.mean": torch.ones(2)})), r"the change of 'state.mean' is .* not like \[3\]"),
        ((LOSS, Aux({}, {STEP: torch.ones(())})), "Aux.state has 'state.training.step', which only the run sets"),
        (
            (LOSS, Aux({}, {f"state.adapters.a.{SHARE.removeprefix(STATE)}": torch.ones(())})),
            "Aux.state has 'state.adapters.a.training.share', which only the run sets",
        ),
    ],
)
def test_an_invalid_loss_is_described(result: Any, message: str) -> None:
    state = VALUES | training_progress() | prefixed("adapters.a", training_progress())
    with pytest.raises(ContractError, match=message):
        checked_loss(result, state)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "Aux.terms lacks 'mine', which a regularizer reads"),
        ({"other": LOSS}, "Aux.terms lacks 'mine'"),
        ({"mine": 0.5}, "the term 'mine' is an object of type float, not a scalar floating-point tensor"),
        ({"mine": torch.ones(2)}, r"the term 'mine' is a tensor of torch.float32 and shape \[2\]"),
        ({"mine": torch.ones((), dtype=torch.int64)}, "the term 'mine' is a tensor of torch.int64"),
    ],
)
def test_terms_that_a_regularizer_reads_must_be_scalars(terms: Any, message: str) -> None:
    result = (LOSS, Aux({}, {}, terms))
    assert checked_loss(result, VALUES) == result
    with pytest.raises(ContractError, match=message):
        checked_loss(result, VALUES, ("mine",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "init returns an object of type NoneType, not a dictionary"),
        ({"w": 3}, "init returns 'w' as an object of type int"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "init returns 'w' as a tensor of torch.int64"),
        ({"w": torch.ones(2, device="meta")}, "init returns 'w' as a meta tensor"),
        ({3: torch.ones(2)}, "init returns 3 as a tensor"),
    ],
)
def test_invalid_initial_values_are_described(values: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        checked_values(values)
    assert checked_values(VALUES) is VALUES


def test_a_change_in_place_is_noticed_through_a_view() -> None:
    with torch.inference_mode():
        labels = torch.zeros(2, 4)
    task = Task(Examples(torch.ones(2, 4), labels), Examples(torch.ones(2, 4), labels))
    values, key = {"w": torch.ones(3)}, torch.tensor(1)
    with unmodified(values, task, key):
        values["w"] + 1
    for change, name in (
        (lambda: values["w"].detach()[0].mul_(2), "w"),
        (lambda: task.query.x[1].add_(1), "task.query.x"),
        (lambda: key.zero_(), "key"),
    ):
        with pytest.raises(ContractError, match=rf"inputs are read-only: {name}$"), unmodified(values, task, key):
            change()


def test_metrics_that_only_some_parts_have_are_named() -> None:
    require_same_metrics([["a", "b"], {"b": 1, "a": 2}])
    require_same_metrics([[]])
    with pytest.raises(ContractError, match=r"tasks of two shapes have different metrics: b, c$"):
        require_same_metrics(iter([["a", "b"], ["a", "c"], ["a", "b"]]))
