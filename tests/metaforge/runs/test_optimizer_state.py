"""What an optimiser keeps: tensors and scalars of parameters and of groups; everything else is refused by name."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from metaforge.errors import CheckpointError, ContractError
from metaforge.runs.optimizer_state import Kept, OptimizerState


class Keeping(torch.optim.Optimizer):
    """Counts in a number of each parameter, in numbers and a tensor of the group, and in what `more` does."""

    def __init__(self, params: Any, more: Any = None) -> None:
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.99), "k": 0, "word": None, "sum": torch.zeros(())})
        self.more = more

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["new"] = 0.1 * group["k"]
            group["sum"] += 0.5
            for param in group["params"]:
                self.state[param]["steps"] = self.state[param].get("steps", 0) + 1
                param.add_(group["k"] * group["sum"] * self.state[param]["steps"])
        if self.more is not None:
            self.more(self)


def keeping(more: Any = None) -> tuple[Keeping, OptimizerState, torch.Tensor]:
    leaf = torch.zeros(2)
    optimizer = Keeping([leaf], more)
    return optimizer, OptimizerState(optimizer, {"model.w": leaf}), leaf


def kept_after(steps: int) -> Kept:
    optimizer, state, _ = keeping()
    for _ in range(steps):
        optimizer.step()
    return state.kept()


def test_only_what_steps_change_is_kept() -> None:
    assert kept_after(0).scalars == {}
    kept = kept_after(2)
    assert kept.scalars == {"steps.model.w": 2, "group 0.k": 2, "group 0.new": 0.2}
    assert {name: float(value) for name, value in kept.tensors.items()} == {"group 0.sum": 1.0}


def test_scalars_of_parameters_and_groups_are_restored_bit_for_bit() -> None:
    whole, _, expected = keeping()
    for _ in range(5):
        whole.step()
    tensors, scalars = kept_after(3)
    other, state, leaf = keeping()
    state.restore(Kept(tensors, json.loads(json.dumps(dict(scalars)))), kept_after(1))
    first, _, before = keeping()
    for _ in range(3):
        first.step()
    leaf.copy_(before)
    for _ in range(2):
        other.step()
    assert torch.equal(leaf, expected)
    assert state.kept().scalars["group 0.new"] == 0.1 * 5


def test_a_copy_is_restored_and_kept() -> None:
    kept = kept_after(3)
    optimizer, state, _ = keeping()
    state.restore(kept, kept_after(1))
    optimizer.step()
    assert float(kept.tensors["group 0.sum"]) == 1.5
    before = state.kept()
    optimizer.step()
    assert float(before.tensors["group 0.sum"]) == 2.0


@pytest.mark.parametrize("name", ["group 0.k", "steps.model.w"])
def test_a_missing_scalar_is_an_error(name: str) -> None:
    tensors, scalars = kept_after(3)
    _, state, _ = keeping()
    with pytest.raises(CheckpointError, match=f"{name}.* is missing"):
        state.restore(Kept(tensors, {key: value for key, value in scalars.items() if key != name}), kept_after(1))


def test_a_tensor_that_grows_is_restored() -> None:
    def grow(optimizer: Keeping) -> None:
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        state["history"] = torch.cat([state.get("history", torch.zeros(0, 3)), torch.ones(1, 3)])

    kept = []
    for steps in (4, 1):
        optimizer, state, _ = keeping(grow)
        for _ in range(steps):
            optimizer.step()
        kept.append(state.kept())
    _, restored, _ = keeping(grow)
    restored.restore(*kept)
    assert restored.kept().tensors["history.model.w"].shape == (4, 3)


def hide(name: str, value: Any) -> Any:
    return lambda optimizer: setattr(optimizer, name, value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (lambda o: o.state[o.param_groups[0]["params"][0]].update(past=[torch.ones(1)]), "'past.model.w' of type list"),
        (lambda o: o.param_groups[0].update(past={}), "'group 0.past' of type dict"),
        (lambda o: o.state["k"].update(n=1), "the key 'k', which is none of its parameters"),
        (lambda o: o.state[o.param_groups[0]["params"][0]].update({"a.b": 1}), "the key 'a.b'"),
        (hide("slow", torch.ones(1)), "attribute 'slow'"),
        (hide("slow", {"w": [torch.ones(1)]}), "attribute 'slow'"),
        (hide("count", 3), "attribute 'count'"),
        (hide("noise", torch.Generator()), "attribute 'noise'"),
        (hide("inner", torch.optim.SGD([torch.zeros(1)])), "attribute 'inner'"),
        (hide("late", [1.0]), "attribute 'late'"),
        (hide("late", np.zeros(2)), "attribute 'late'"),
        (hide("late", deque([torch.ones(1)])), "attribute 'late'"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_by_name(more: Any, sentence: str) -> None:
    optimizer, state, _ = keeping(more)
    optimizer.step()
    with pytest.raises(ContractError, match=sentence):
        state.kept()


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ([], lambda held: held.append(0.5)),
        ([0.5, 0.5], lambda held: held.pop()),
        (deque([1, 2], maxlen=2), lambda held: held.append(3)),
        ({"n": 0}, lambda held: held.update(n=1)),
        ({"n": [{"m": 0}]}, lambda held: held["n"][0].update(m=1)),
        ({1}, lambda held: held.add(2)),
        (np.zeros(2), lambda held: held.fill(1.0)),
    ],
)
def test_a_container_that_steps_change_is_refused_by_name(before: Any, change: Any) -> None:
    optimizer, _, leaf = keeping(lambda optimizer: change(optimizer.past))
    optimizer.past = before
    state = OptimizerState(optimizer, {"model.w": leaf})
    state.kept()
    optimizer.step()
    with pytest.raises(ContractError, match="its attribute 'past' changes or holds tensors"):
        state.kept()


def test_attributes_that_do_not_change_and_lists_of_parameters_are_no_state() -> None:
    optimizer, _, leaf = keeping()
    optimizer.options, optimizer.every, optimizer.table = {"a": [1, {"b": None}]}, 5, np.ones(2)
    optimizer.cached = None
    state = OptimizerState(optimizer, {"model.w": leaf})
    optimizer.all = optimizer.cached = [leaf]
    optimizer.by_device = {"cpu": [leaf]}
    optimizer.step()
    assert state.kept().scalars["group 0.k"] == 1
