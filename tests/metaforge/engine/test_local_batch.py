"""A single process computes the whole batch, and its reduction adds up the groups in order."""

from __future__ import annotations

import torch

from metaforge.engine.local_batch import LocalBatch, sum_groups


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
