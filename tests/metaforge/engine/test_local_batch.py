"""A single process computes the whole batch, and its reduction adds up the groups in order."""

from __future__ import annotations

import torch

from metaforge.engine.local_batch import LocalBatch, reduce_groups, sum_groups


def test_groups_are_added_up_in_order_and_rows_are_kept() -> None:
    groups = [{"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    rows = torch.arange(6.0).view(3, 2)
    sums, all_rows = sum_groups(groups, rows)
    # In float32, 1e8 + 1 is 1e8: another order of the sum would give 1.
    assert torch.equal(sums["w"], torch.tensor([0.0]))
    assert torch.equal(all_rows, rows)


def test_a_name_that_some_groups_lack_is_kept() -> None:
    sums, _ = sum_groups([{"w": torch.ones(2)}, {"v": torch.ones(1)}], torch.zeros(1, 1))
    assert {name: value.tolist() for name, value in sums.items()} == {"w": [1.0, 1.0], "v": [1.0]}


def test_by_default_a_local_batch_is_that_of_a_single_process() -> None:
    local = LocalBatch(4, (2, 2))
    assert local.first == 0
    assert local.reduce is sum_groups
    assert local.is_whole
    assert not LocalBatch(4, (2, 1)).is_whole


def test_each_dtype_is_summed_by_itself_and_rows_keep_their_place() -> None:
    groups = [{"w": torch.full((2,), 0.1), "total": torch.tensor([0.1], dtype=torch.float64)} for _ in range(3)]
    rows = torch.arange(4, dtype=torch.float64).view(2, 2) + 0.1
    collectives: list[torch.dtype] = []

    def add(groups: torch.Tensor) -> torch.Tensor:
        collectives.append(groups.dtype)
        return groups.sum(0)

    sums, all_rows = reduce_groups(add, 5, 1, groups, rows)
    assert {name: value.dtype for name, value in sums.items()} == {"w": torch.float32, "total": torch.float64}
    torch.testing.assert_close(sums["w"], torch.full((2,), 0.3))
    torch.testing.assert_close(sums["total"], torch.tensor([0.3], dtype=torch.float64), rtol=1e-15, atol=0)
    assert torch.equal(all_rows, torch.cat([rows.new_zeros(1, 2), rows, rows.new_zeros(2, 2)]))
    assert collectives == [torch.float32, torch.float64]


def test_sums_are_added_by_name() -> None:
    groups = [{"v": torch.ones(1), "w": torch.zeros(1)}, {"w": torch.zeros(1), "v": torch.ones(1)}]
    sums, _ = reduce_groups(lambda groups: groups.sum(0), 2, 0, groups, torch.ones(2, 1))
    assert {name: value.tolist() for name, value in sums.items()} == {"v": [2.0], "w": [0.0]}


def test_rows_travel_in_the_collective_of_their_dtype() -> None:
    rows, collectives = torch.ones(2, 1), []

    def add(groups: torch.Tensor) -> torch.Tensor:
        collectives.append(groups.shape)
        return groups.sum(0)

    sums, all_rows = reduce_groups(add, 2, 0, [{"w": torch.ones(3)}, {"w": torch.ones(3)}], rows)
    assert (sums["w"].tolist(), all_rows.tolist()) == ([2.0, 2.0, 2.0], [[1.0], [1.0]])
    assert collectives == [(2, 5)]
    nothing, all_rows = reduce_groups(add, 2, 0, [{}], rows)
    assert (nothing, all_rows.tolist()) == ({}, [[1.0], [1.0]])
