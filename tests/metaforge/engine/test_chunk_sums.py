"""Tests of the summed gradients of chunks: the same for any chunks, each group on its own, weights by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine_toys import Inequality, maml
from metaforge.authoring.functional import add_params, split_state
from metaforge.authoring.protocols import Options, Params
from metaforge.engine.chunk_sums import reduced, with_all_entries, with_combined_weights, with_equal_weights
from metaforge.engine.chunks import ChunkResult
from metaforge.engine.local_batch import LocalBatch
from metaforge.engine.shaped_tasks import ShapedTasks, chunks
from toys import fresh, keys, tasks

BUILT = maml()
PARAMS, STATE = split_state(fresh(BUILT))


def parts(chunk: int | None, groups: tuple[int, ...], plan: Any) -> Any:
    return chunks([ShapedTasks(BUILT, tasks(5), keys(5), range(5), chunk)], groups, plan)


def assert_close(first: Params, second: Params) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_groups_have_the_sums_of_their_own_tasks(plan: Any) -> None:
    whole = LocalBatch(5, (5,))
    (expected,), results = with_equal_weights(plan, PARAMS, STATE, parts(None, (5,), plan), whole)
    for groups, chunk in (((5,), 2), ((2, 3), None), ((2, 3), 2)):
        sums, _ = with_equal_weights(plan, PARAMS, STATE, parts(chunk, groups, plan), LocalBatch(5, groups))
        assert len(sums) == len(groups)
        total: Params = {}
        for one in sums:
            total = add_params(total, one)
        assert_close(total, expected)
    assert [list(positions) for _, positions in results] == [[i] for i in range(5)] if plan == "loop" else [[*range(5)]]


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_weights_that_depend_on_all_losses_are_those_of_the_position(plan: Any) -> None:
    local, terms = LocalBatch(5, (2, 3)), (Inequality(Options()),)
    sums, _ = with_combined_weights(plan, PARAMS, STATE, parts(2, (2, 3), plan), local, terms)
    (single,), _ = with_combined_weights("loop", PARAMS, STATE, parts(None, (5,), "loop"), LocalBatch(5, (5,)), terms)
    assert_close(add_params(*sums), single)


def test_rows_are_reduced_in_the_order_of_the_tasks() -> None:
    local = LocalBatch(5, (5,))
    groups, results = with_equal_weights("loop", PARAMS, STATE, parts(None, (5,), "loop"), local)
    _, expected, metrics = reduced(local, groups, results)
    _, other, others = reduced(local, groups, results[::-1])
    assert torch.equal(expected.losses, other.losses)
    assert torch.equal(metrics["score"], others["score"])
    assert len(expected.losses.unique()) == 5


def test_what_a_group_lacks_becomes_an_identity_of_addition_in_the_order_of_the_values() -> None:
    half = torch.float16
    values: Params = {
        "state.a": torch.ones(2),
        "w": torch.ones(1),
        "state.b": torch.ones(3, dtype=half),
        "state.frozen": torch.ones(1),
        "v.frozen": torch.ones(1),
        "state.training.step": torch.ones(()),
    }
    groups = [{"w": torch.ones(1), "state.a": torch.ones(2)}, {"state.frozen": torch.ones(1), "w": torch.zeros(1)}]
    found = with_all_entries(groups, values, ["*frozen"])
    assert [list(group) for group in found] == [["state.a", "w", "state.b"]] * 2
    assert found[0]["state.a"] is groups[0]["state.a"]
    assert (found[1]["state.b"].dtype, found[1]["state.b"].shape) == (half, (3,))
    signed = torch.tensor([0.0, -0.0])
    assert torch.equal((signed + found[1]["state.a"]).view(torch.int32), signed.view(torch.int32))


def test_changes_of_the_state_have_its_dtype() -> None:
    state = {"state.n": torch.zeros(1, dtype=torch.float64)}

    def run(*arguments: Any) -> Any:
        return ChunkResult(torch.zeros(2), {"state.n": torch.ones(1)}, {}), {"w": torch.ones(1)}

    shaped = ShapedTasks(BUILT, tasks(2), keys(2), range(2), compiled=run)
    (sums,), _ = with_equal_weights("vmap", {}, state, chunks([shaped], (2,), "vmap"), LocalBatch(4, (2,)))
    assert sums["state.n"].dtype == torch.float64
    assert sums["state.n"].tolist() == [0.5]


@pytest.mark.parametrize("names", [["score", "a"], ["a", "score"]])
def test_metrics_are_reduced_by_name_and_returned_in_their_order(names: list[str]) -> None:
    numbers = {"score": torch.tensor([1.0]), "a": torch.tensor([2.0])}
    result = ChunkResult(torch.zeros(1), {}, {name: numbers[name] for name in names})
    compared: list[Any] = []
    local = LocalBatch(1, (1,), require_same_metrics=compared.append)
    _, _, metrics = reduced(local, [{}], [(result, [0])])
    assert list(metrics) == names
    assert {name: value.tolist() for name, value in metrics.items()} == {"score": [1.0], "a": [2.0]}
    assert compared == [["a", "score"]]
