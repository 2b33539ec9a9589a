"""Tests of streams: which tasks an outer step draws, a pure function of the seed and the episode."""

from __future__ import annotations

import numpy as np

from metaforge.data.stream import seen_tasks


def test_only_tasks_that_have_arrived_are_drawn() -> None:
    drawn = np.array(seen_tasks(range(2000), 20, seed=0))
    rounds = np.arange(2000) // 20
    assert (drawn >= 0).all()
    assert (drawn <= rounds).all()
    assert (drawn[:20] == 0).all()
    # The newest is drawn too, and the oldest still is.
    assert (drawn == rounds)[1000:].any()
    assert (drawn[1000:] == 0).any()


def test_draws_are_uniform_over_what_has_arrived() -> None:
    drawn = np.array(seen_tasks(range(9 * 40_000, 10 * 40_000), 40_000, seed=3))
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10
    # The standard deviation of a count is 60.
    assert np.abs(counts - 4000).max() < 240


def test_a_draw_depends_on_seed_and_episode_alone() -> None:
    whole = seen_tasks(range(100), 5, seed=1)
    assert [*seen_tasks(range(37), 5, seed=1), *seen_tasks(range(37, 100), 5, seed=1)] == whole
    assert seen_tasks(range(100), 5, seed=2) != whole
