"""A summary that is built step by step gives the same mean and interval as the list of all numbers."""

from __future__ import annotations

import json
import math
import random

import pytest

from metaforge.results.statistics import mean_and_ci
from metaforge.runs.running_summary import RunningSummary


def summary_of(batches: list[list[float]]) -> RunningSummary:
    summary = RunningSummary()
    for batch in batches:
        summary = summary.extended(batch)
    return summary


@pytest.mark.parametrize("offset", [0.0, 1.0, -1e3, 1e8])
@pytest.mark.parametrize("size", [1, 2, 16, 101])
def test_it_equals_the_statistics_of_the_list(offset: float, size: int) -> None:
    numbers = random.Random(size)
    batches = [[offset + numbers.gauss(0, 1) for _ in range(size)] for _ in range(500)]
    summary, expected = summary_of(batches), mean_and_ci([value for batch in batches for value in batch])
    assert (summary.count, summary.mean) == (expected["tasks"], expected["mean"])
    assert summary.ci == pytest.approx(expected["ci"], rel=1e-12)


def test_scores_of_very_different_steps_are_merged_without_a_loss() -> None:
    batches = [[1e6, 1e6 + 1], *([0.25, 0.75] for _ in range(2000)), [-1e-9, 1e-9]]
    summary, expected = summary_of(batches), mean_and_ci([value for batch in batches for value in batch])
    assert summary.mean == expected["mean"]
    assert summary.ci == pytest.approx(expected["ci"], rel=1e-12)


def test_one_batch_gives_the_bits_of_the_list() -> None:
    values = [0.2, 0.7, 0.1, 0.4]
    summary, expected = RunningSummary().extended(values), mean_and_ci(values)
    assert (summary.mean, summary.ci) == (expected["mean"], expected["ci"])


def test_its_size_does_not_depend_on_the_number_of_values() -> None:
    few, many = summary_of([[0.1, 0.2]]), summary_of([[0.1, 0.2]] * 10_000)
    assert len(json.dumps(many.to_json())) <= len(json.dumps(few.to_json())) + 60


def test_no_values_change_nothing_and_one_value_has_no_interval() -> None:
    one = RunningSummary().extended([0.5])
    assert one.extended([]) == one
    assert (one.count, one.mean, one.ci) == (1, 0.5, None)


@pytest.mark.parametrize("batch", [[math.nan, 0.5], [math.inf, 0.5], [math.inf, -math.inf], [1e308, 1e308]])
def test_numbers_that_are_not_finite_or_overflow_are_kept_as_such(batch: list[float]) -> None:
    for summary in (summary_of([batch]), summary_of([[0.5], batch, [0.25]]), summary_of([batch, batch])):
        assert not math.isfinite(summary.mean)
        assert summary.ci is not None
        assert not math.isfinite(summary.ci)


def test_means_whose_difference_overflows_have_an_infinite_interval() -> None:
    assert summary_of([[1.5e308], [-1.5e308]]).ci == math.inf


@pytest.mark.parametrize("batches", [[[0.1, 0.7], [0.3]], [[0.1]], [[0.1, 0.7], [math.inf]]])
def test_it_is_saved_and_restored_exactly(batches: list[list[float]]) -> None:
    summary = summary_of(batches)
    restored = RunningSummary.from_json(json.loads(json.dumps(summary.to_json())))
    assert repr(restored) == repr(summary)


def test_a_list_of_all_numbers_is_read_too() -> None:
    assert RunningSummary.from_json([0.1, 0.7]) == RunningSummary().extended([0.1, 0.7])


@pytest.mark.parametrize("saved", ["x", 3, None, {}, {"count": 1}, ["x"]])
def test_anything_else_is_an_error(saved: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        RunningSummary.from_json(saved)


@pytest.mark.parametrize("change", [{"count": 0}, {"count": True}, {"count": 1.5}, {"squares": -1.0}, {"total": "x"}])
def test_an_impossible_summary_is_an_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"summary|convert"):
        RunningSummary.from_json(RunningSummary().extended([0.1, 0.7]).to_json() | change)
