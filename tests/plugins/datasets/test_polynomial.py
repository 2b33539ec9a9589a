"""Tests of the polynomials: their degree, the distribution of their coefficients, noise, and their constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaforge.authoring.protocols import TaskShape
from metaforge_plugins.datasets.polynomial import Polynomial

SHAPE = TaskShape(1, 10, 15)


def made(**options: object) -> Polynomial:
    return Polynomial(Polynomial.Config.model_validate(options), root=Path("nowhere"))


@pytest.mark.parametrize("degree", [0, 1, 3, 5])
def test_a_task_is_a_polynomial_of_its_degree(degree: int) -> None:
    task = made(degree=degree).sample("train", SHAPE, 0, 20, seed=0)
    for index in range(20):
        x, y, query_x, query_y = (part[index, :, 0].double().numpy() for part in (*task.support, *task.query))
        coefficients = np.polyfit(x, y, degree)
        assert np.allclose(np.polyval(coefficients, query_x), query_y, atol=2e-4)
    if degree:
        assert np.abs(np.polyval(np.polyfit(x, y, degree - 1), x) - y).max() > 1e-3


def test_coefficients_are_normal_with_the_scale() -> None:
    data = made(degree=2, scale=3.0)
    # The coefficients of a + bx + cx² from three values.
    values = np.stack([data.truth("test", index, [-1.0, 0.0, 1.0], seed=0) for index in range(4000)])
    found = np.stack(
        [values[:, 1], (values[:, 2] - values[:, 0]) / 2, (values[:, 2] + values[:, 0]) / 2 - values[:, 1]]
    )
    assert np.abs(found.mean(1)).max() < 0.2
    assert np.allclose(np.cov(found), 9 * np.eye(3), atol=0.8)


def test_noise_is_added_to_the_truth() -> None:
    data = made(noise=0.3)
    task = data.sample("test", SHAPE, 0, 200, seed=1)
    noise = [
        part.y[index, :, 0].numpy() - data.truth("test", index, part.x[index, :, 0].numpy(), seed=1)
        for index in range(200)
        for part in (task.support, task.query)
    ]
    assert np.concatenate(noise).std() == pytest.approx(0.3, rel=0.05)
    assert abs(np.corrcoef(np.stack([part[:10] for part in noise[1::2]]).T) - np.eye(10)).max() < 0.3
    plain = made()
    assert np.allclose(
        plain.sample("test", SHAPE, 3, 1, seed=1).query.y[0, :, 0].numpy(),
        plain.truth("test", 3, plain.sample("test", SHAPE, 3, 1, seed=1).query.x[0, :, 0].numpy(), seed=1),
        atol=1e-5,
    )


def test_the_error_of_predicting_nothing() -> None:
    data = made(degree=4, scale=2.0, noise=0.5)
    y = data.sample("train", TaskShape(1, 1, 20), 0, 50_000, seed=0).query.y
    assert y.double().square().mean().item() == pytest.approx(data.facts("train")["error of predicting 0"], rel=0.03)
