"""Tests of the base class of data sets of curves: what a subclass gets, and which tasks it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from metaforge.authoring import Options, TaskShape
from metaforge.data import Bits, CurveDataset, CurveOptions, Range, between, uniforms
from metaforge.errors import ConfigError, DataError
from metaforge.testing import Check, Subject, parametrize_with_checks


class Lines(CurveDataset):
    """Lines through the origin."""

    Config, name, x_range = CurveOptions, "lines", (-3.0, 1.0)

    def curves(self, keys: Bits, x: np.ndarray) -> np.ndarray:
        return (1 + uniforms(keys, 1)) * x

    def facts(self, split: str) -> dict[str, str | int | float]:
        self.check(split)
        return {"slopes": "1 to 2"}


def lines(**options: object) -> Lines:
    return Lines(CurveOptions.model_validate(options), root=Path())


@parametrize_with_checks([Subject("dataset", "lines", Lines, shape=TaskShape(1, 4, 6))])
def test_a_subclass_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


def test_support_and_query_points_are_of_one_curve() -> None:
    task = lines().sample("train", TaskShape(1, 4, 6), 0, 500, seed=0)
    slopes = torch.cat([part.y / part.x for part in (task.support, task.query)], 1)
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), rtol=1e-5, atol=0)
    assert slopes[:, 0].std() > 0.2
    x = torch.cat([task.support.x, task.query.x], 1)
    assert -3 <= x.min() < -2.99
    assert 0.99 < x.max() < 1
    assert x.mean().item() == pytest.approx(-1, abs=0.05)


def test_more_queries_leave_the_first_ones_as_they_are() -> None:
    few, many = (lines().sample("test", TaskShape(1, 4, n), 2, 3, seed=1) for n in (5, 50))
    assert torch.equal(few.support.y, many.support.y)
    assert torch.equal(few.query.y, many.query.y[:, :5])


def test_the_grid_is_for_queries_in_evaluation() -> None:
    shape, plain, grid = TaskShape(1, 4, 9), lines(), lines(query_grid=True)
    found = grid.sample("val", shape, 0, 2, seed=0)
    assert torch.allclose(found.query.x[1, :, 0], torch.linspace(-3, 1, 9))
    assert torch.equal(found.support.x, plain.sample("val", shape, 0, 2, seed=0).support.x)
    assert torch.equal(*(data.sample("train", shape, 0, 2, seed=0).query.x for data in (plain, grid)))


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        lines().sample("trian", TaskShape(1, 1, 1), 0, 1, seed=0)
    for shape in (TaskShape(5, 1, 1), TaskShape(1, 0, 1), TaskShape(1, 1, 0)):
        with pytest.raises(DataError, match="a regression task cannot have"):
            lines().spec("train", shape)


def test_a_range_has_two_limits_in_order() -> None:
    class Ranged(Options):
        scale: Range = (1.0, 2.0)

    assert Ranged(scale=(3.0, 3.0)).scale == (3.0, 3.0)
    for limits, message in (((2.0, 1.0), "above the upper"), ((1.0,), "at least 2"), ((0.0, 1.0), "0.01")):
        with pytest.raises(ValidationError, match=message):
            Ranged(scale=limits)
    assert between((2.0, 6.0), np.array([0.0, 0.5])).tolist() == [2.0, 4.0]
