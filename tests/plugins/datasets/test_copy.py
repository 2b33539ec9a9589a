"""The copy task: what is shown, what is asked for and when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaforge.authoring.kinds import MULTI_LABEL
from metaforge.authoring.protocols import TaskShape
from metaforge.errors import ConfigError, DataError
from metaforge_plugins.datasets.copy import TICK, Copy

SHAPE = TaskShape(1, 5, 8)


def made(**options: int) -> Copy:
    """Return the copy task with some options."""
    return Copy(Copy.Config.model_validate(options), root=Path("nowhere"))


def test_the_queries_ask_for_what_was_shown_in_the_same_order() -> None:
    task = made().sample("train", SHAPE, 0, 7, seed=0)
    (x, y), (asked, targets), classes = task
    assert classes == ()
    assert [tuple(part.shape) for part in (x, y, asked, targets)] == [(7, 5, 10), (7, 5, 8), (7, 8, 10), (7, 8, 8)]
    assert torch.equal(x[..., :8], y)
    assert torch.equal(targets[:, :5], y)
    assert not targets[:, 5:].any()
    assert not asked[..., :8].any()
    # The flag: where an element is asked for.
    assert not x[..., 8].any()
    assert torch.equal(asked[..., 8], torch.tensor([1.0] * 5 + [0.0] * 3).expand(7, 8))


def test_time_goes_on_from_a_random_start() -> None:
    task = made().sample("train", SHAPE, 0, 500, seed=0)
    times = torch.cat([task.support.x[..., -1], task.query.x[..., -1]], 1)
    torch.testing.assert_close(times - times[:, :1], TICK * torch.arange(13).expand(500, -1), rtol=0, atol=1e-6)
    start = times[:, 0]
    assert 0 <= start.min() < 0.02
    assert 0.98 < start.max() < 1
    assert abs(float(start.mean()) - 0.5) < 0.05


def test_bits_are_fair_and_independent() -> None:
    y = made().sample("train", TaskShape(1, 20, 20), 0, 500, seed=0).support.y
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert (y.mean((0, 1)) - 0.5).abs().max() < 0.03
    assert (y.mean((0, 2)) - 0.5).abs().max() < 0.05
    flat = y.flatten(1) - 0.5
    correlation = 4 * flat.T @ flat / len(flat) - torch.eye(160)
    assert correlation.abs().max() < 0.25
    assert len({tuple(row) for row in flat.tolist()}) == 500


def test_spec_and_facts() -> None:
    spec = made(bits=3).spec("val", SHAPE)
    assert (spec.kind, spec.x_shape, spec.outputs, spec.shape) == (MULTI_LABEL, (5,), 3, SHAPE)
    assert made(bits=3).facts("test") == {"tasks": "unlimited", "bits": 3}


@pytest.mark.parametrize("shape", [TaskShape(2, 5, 5), TaskShape(1, 0, 5), TaskShape(1, 5, 4)])
def test_other_shapes_are_refused(shape: TaskShape) -> None:
    data = made()
    for call in (lambda: data.spec("train", shape), lambda: data.sample("train", shape, 0, 1, seed=0)):
        with pytest.raises(DataError, match="a task of recall cannot have") as caught:
            call()
        assert "queries to shots or more" in str(caught.value.remedy)


def test_other_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="split"):
        made().spec("nowhere", SHAPE)


def test_a_short_sequence_begins_as_a_long_one() -> None:
    """The numbers of an element do not depend on the length, so lengths are compared on equal beginnings."""
    short, long = (made().sample("test", TaskShape(1, n, 9), 0, 4, seed=1).support for n in (3, 9))
    assert torch.equal(short.x, long.x[:, :3])
