"""Tests of the summed gradients of chunks: the same for any chunks, each group on its own, weights by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine_toys import Inequality, maml
from metaforge.authoring.functional import add_params, split_state
from metaforge.authoring.protocols import Options, Params
from metaforge.engine.chunk_sums import reduced, with_combined_weights, with_equal_weights
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
