"""Tests of the sinusoid: its constants by quadrature and by sampling, and independence of its splits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from metaforge.authoring.kinds import REGRESSION
from metaforge.authoring.protocols import Task, TaskShape
from metaforge.errors import ConfigError, DataError
from metaforge_plugins.datasets import sinusoid
from metaforge_plugins.datasets.sinusoid import Sinusoid, SinusoidOptions

SHAPE = TaskShape(1, 10, 15)


def made(**options: object) -> Sinusoid:
    return Sinusoid(SinusoidOptions.model_validate(options), root=Path("nowhere"))


def quadrature(low: float, high: float, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (high - low) / 2 * nodes + (high + low) / 2, weights / 2


def test_exact_constants_by_quadrature() -> None:
    """E[A²]/2 = 4.2517; the best predictor that ignores the task is −1.6234 cos x, with an error of 3.0057."""
    amplitude, a = quadrature(*sinusoid.AMPLITUDE)
    phase, p = quadrature(*sinusoid.PHASE)
    x, w = quadrature(*sinusoid.X_RANGE)
    second_moment = (a * amplitude**2).sum()
    assert second_moment / 2 == pytest.approx(4.2517, abs=5e-5)
    mean_wave = (a * amplitude).sum() * (p[:, None] * np.sin(x - phase[:, None])).sum(0)
    assert np.allclose(mean_wave, -1.6234 * np.cos(x), atol=5e-5)
    square = second_moment * (p[:, None] * np.sin(x - phase[:, None]) ** 2).sum(0)
    assert (w * square).sum() == pytest.approx(4.2517, abs=5e-5)
    error = (w * (square - mean_wave**2)).sum()
    assert error == pytest.approx(3.0057, abs=5e-5)
    facts = made().facts("test")
    assert facts["error of predicting 0"] == pytest.approx((w * square).sum(), abs=1e-9)
    assert facts["error of the mean wave"] == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(("phase", "sign"), [("minus", -1), ("plus", 1)])
def test_constants_by_sampling(phase: Literal["minus", "plus"], sign: int) -> None:
    task = made(phase=phase).sample("train", TaskShape(1, 1, 10), 0, 200_000, seed=0)
    x, y = task.query.x.double(), task.query.y.double()
    assert (y**2).mean().item() == pytest.approx(4.2517, abs=0.05)
    assert ((y - sign * 1.6234 * torch.cos(x)) ** 2).mean().item() == pytest.approx(3.0057, abs=0.04)
    slope = (y * torch.cos(x)).mean() / (torch.cos(x) ** 2).mean()
    assert slope.item() == pytest.approx(sign * 1.6234, abs=0.03)


def test_shapes_ranges_and_types() -> None:
    task = made().sample("val", SHAPE, 5, 7, seed=3)
    assert [tuple(t.shape) for part in (task.support, task.query) for t in part] == [
        (7, 10, 1),
        (7, 10, 1),
        (7, 15, 1),
        (7, 15, 1),
    ]
    assert all(t.dtype == torch.float32 for part in (task.support, task.query) for t in part)
    assert task.query.x.abs().max() <= 5
    spec = made().spec("train", SHAPE)
    assert (spec.kind, spec.x_shape, spec.outputs, spec.shape) == (REGRESSION, (1,), 1, SHAPE)


@pytest.mark.parametrize("phase", ["minus", "plus"])
def test_truth_is_the_curve_of_the_episode(phase: str) -> None:
    data = made(phase=phase)
    task = data.sample("test", SHAPE, 0, 9, seed=3)
    for index in (0, 8):
        for part in (task.support, task.query):
            true = data.truth("test", index, part.x[index, :, 0].numpy(), seed=3)
            assert np.allclose(true, part.y[index, :, 0].numpy(), atol=1e-5)
    ends = data.truth("test", 4, [0.0, math.pi], seed=3)
    assert ends[0] == pytest.approx(-ends[1])


def test_the_conventions_mirror_each_other() -> None:
    minus, plus = (made(phase=phase).truth("test", 2, [0.7, -0.7], seed=1) for phase in ("minus", "plus"))
    assert minus[0] == pytest.approx(-plus[1])


def test_the_frequency_is_drawn_between_its_limits() -> None:
    data = made(frequency=(0.5, 3.0))
    x = np.linspace(-1e-4, 1e-4, 3)
    # A sin(ωx − φ) has the second derivative −ω² y.
    squares = []
    for index in range(300):
        wave = data.truth("test", index, x, seed=0)
        squares.append(-(wave[0] - 2 * wave[1] + wave[2]) / 1e-8 / wave[1])
    frequencies = np.sqrt(squares)
    assert 0.5 - 1e-3 < frequencies.min() < 0.6
    assert 2.9 < frequencies.max() < 3 + 1e-3
    assert frequencies.mean() == pytest.approx(1.75, abs=0.15)
    assert np.array_equal(
        made().truth("test", 3, [0.3], seed=0), made(frequency=(1.0, 1.0)).truth("test", 3, [0.3], seed=0)
    )


def test_errors_of_predictors_with_varied_frequency() -> None:
    data = made(frequency=(0.5, 3.0))
    task = data.sample("train", TaskShape(1, 1, 10), 0, 200_000, seed=0)
    x, y = task.query.x.double(), task.query.y.double()
    facts = data.facts("train")
    assert (y**2).mean().item() == pytest.approx(facts["error of predicting 0"], abs=0.05)
    mean_cosine = (torch.sin(3 * x) - torch.sin(0.5 * x)) / (2.5 * x)
    error = ((y + 5.1 / math.pi * mean_cosine) ** 2).mean().item()
    assert error == pytest.approx(facts["error of the mean wave"], abs=0.04)
    assert facts["error of the mean wave"] < facts["error of predicting 0"] - 0.1


def flat(task: Task) -> torch.Tensor:
    return torch.cat([t.flatten(1) for part in (task.support, task.query) for t in part], dim=1)


def test_episodes_do_not_depend_on_batches_and_splits_differ() -> None:
    data = made()
    whole = flat(data.sample("train", SHAPE, 0, 20, seed=1))
    parts = [data.sample("train", SHAPE, first, 4, seed=1) for first in range(0, 20, 4)]
    assert torch.equal(whole, torch.cat([flat(part) for part in parts]))
    for split, seed in (("val", 1), ("test", 1), ("train", 2)):
        assert not torch.isclose(whole, flat(data.sample(split, SHAPE, 0, 20, seed=seed))).all(1).any()


def test_the_query_grid_is_used_in_evaluation_only() -> None:
    data = made(query_grid=True)
    x = data.sample("test", SHAPE, 0, 3, seed=0).query.x
    assert torch.allclose(x[1, :, 0], torch.linspace(-5, 5, 15), atol=1e-6)
    assert torch.equal(
        data.sample("test", SHAPE, 0, 3, seed=0).support.x, made().sample("test", SHAPE, 0, 3, seed=0).support.x
    )
    assert torch.equal(
        data.sample("train", SHAPE, 0, 3, seed=0).query.x, made().sample("train", SHAPE, 0, 3, seed=0).query.x
    )


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        made().sample("trian", SHAPE, 0, 1, seed=0)
    for shape in (TaskShape(5, 1, 1), TaskShape(1, 0, 1), TaskShape(1, 1, 0)):
        with pytest.raises(DataError, match="a regression task cannot have"):
            made().spec("train", shape)
