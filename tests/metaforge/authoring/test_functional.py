"""Functions on dictionaries of parameters and on batches of tasks, and the gradient with respect to a dictionary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metaforge.authoring.functional import (
    add_params,
    advance_state,
    detach_params,
    gradient,
    matching,
    one_task,
    prefixed,
    select,
    split_state,
    sum_of,
)
from metaforge.authoring.protocols import Params
from metaforge.errors import ConfigError
from toys import task, tasks


def test_select_is_the_inverse_of_prefixed_and_state_stays_in_front() -> None:
    params = {"a.b": torch.ones(1), "state.c": torch.zeros(2)}
    inside = prefixed("net", params)
    assert set(inside) == {"net.a.b", "state.net.c"}
    assert set(select(inside | {"network.a": torch.ones(1)}, "net")) == set(params)
    assert select(inside, "net")["state.c"] is params["state.c"]


def test_split_state_separates_all_state_entries_and_nothing_else() -> None:
    params, state = split_state({"a": torch.ones(1), "state.a": torch.ones(1), "statement": torch.ones(1)})
    assert set(params) == {"a", "statement"}
    assert set(state) == {"state.a"}


def test_add_params_keeps_the_names_of_both_and_modifies_neither() -> None:
    left, right = {"a": torch.ones(1), "b": torch.ones(1)}, {"b": torch.ones(1), "c": torch.ones(1)}
    assert {name: float(value) for name, value in add_params(left, right).items()} == {"a": 1, "b": 2, "c": 1}
    assert float(left["b"]) == 1


def test_sum_of_takes_any_iterable_of_at_least_one_tensor() -> None:
    assert float(sum_of(x for x in (torch.ones(()), torch.ones(())))) == 2
    with pytest.raises(ValueError, match="not enough values"):
        sum_of([])


def test_detach_params_detaches_from_the_graph() -> None:
    assert not detach_params({"a": torch.ones(1, requires_grad=True) * 2})["a"].requires_grad


def test_advance_state_returns_the_changed_entries_only() -> None:
    values = {"a": torch.ones(()), "state.b": torch.ones(()), "state.c": torch.ones(())}
    assert advance_state(values, {"state.b": torch.ones(())}) == {"state.b": torch.tensor(2.0)}
    with pytest.raises(KeyError):
        advance_state(values, {"state.d": torch.ones(())})


def test_one_task_takes_the_same_task_from_every_tensor() -> None:
    third = one_task(tasks(4), 2)
    for part, expected in zip(third[:2], task(2)[:2], strict=True):
        assert torch.equal(part.x, expected.x)
        assert torch.equal(part.y, expected.y)


def quartic(params: Params) -> tuple[Tensor, Params]:
    """Return a loss with a third derivative, and an auxiliary tensor."""
    return params["w"].pow(4).sum(), {"mean": params["w"].mean()}


def test_gradient_can_be_differentiated_only_if_it_is_meant_to_be() -> None:
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for differentiable in (True, False):
        grads, aux = gradient(quartic, {"w": w}, differentiable=differentiable)
        torch.testing.assert_close(grads["w"].detach(), 4 * w.detach() ** 3)
        assert float(aux["mean"].detach()) == 1.5
        assert grads["w"].requires_grad is differentiable
    second = grad(lambda w: gradient(quartic, {"w": w}, differentiable=True)[0]["w"].sum())(w)
    torch.testing.assert_close(second.detach(), 12 * w.detach() ** 2)


@pytest.mark.parametrize("differentiable", [False, True])
def test_gradient_works_under_vmap(differentiable: bool) -> None:
    w = torch.arange(6.0).reshape(3, 2)
    batched, _ = vmap(lambda w: gradient(quartic, {"w": w}, differentiable=differentiable))(w)
    torch.testing.assert_close(batched["w"], 4 * w**3)


def test_patterns_match_names_of_values_and_the_statistics_of_their_layers() -> None:
    names = ["model.0.weight", "model.10.weight", "state.model.0.mean", "adapters.sgd.rate"]
    assert matching(names, ["model.0.*"]) == ("model.0.weight", "state.model.0.mean")
    assert matching(names, ["state.*"], where="train.freeze") == ("state.model.0.mean",)
    assert matching(names, ["adapters.*", "model.1?.*"]) == ("model.10.weight", "adapters.sgd.rate")
    assert matching(names, ["MODEL.*", "model.0"]) == matching(names, []) == ()
    with pytest.raises(ConfigError, match=r"The pattern 'mdel.10.\*' matches no value") as caught:
        matching(names, ["model.*", "mdel.10.*"], where="train.freeze")
    assert caught.value.where == "train.freeze"
    assert "the nearest of the 4 names are model.10.weight, model.0.weight, " in caught.value.remedy


def test_what_is_frozen_is_no_parameter() -> None:
    values = {"a.w": torch.ones(1), "b.w": torch.ones(2), "state.a.mean": torch.ones(3)}
    params, rest = split_state(values, ["a.*"])
    assert (list(params), list(rest)) == (["b.w"], ["a.w", "state.a.mean"])
