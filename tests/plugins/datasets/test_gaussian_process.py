"""Tests of the Gaussian process: its covariance by formula and by sampling, and its exact posterior."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from metaforge.authoring.protocols import TaskShape
from metaforge.data import episode_keys
from metaforge_plugins.datasets.gaussian_process import GaussianProcess

KERNELS = ("rbf", "matern-5/2", "periodic")
SHAPE = TaskShape(1, 7, 5)


def made(**options: object) -> GaussianProcess:
    return GaussianProcess(GaussianProcess.Config.model_validate(options), root=Path("nowhere"))


def covariance(kernel: str, x: np.ndarray, length: float, scale: float, period: float, noise: float) -> np.ndarray:
    """Return the covariance of targets at `x` `[n]`, one entry at a time."""
    result = np.empty((len(x), len(x)))
    for i, first in enumerate(x):
        for j, second in enumerate(x):
            d = abs(first - second)
            if kernel == "rbf":
                value = math.exp(-(d**2) / (2 * length**2))
            elif kernel == "matern-5/2":
                value = (1 + 5**0.5 * d / length + 5 * d**2 / (3 * length**2)) * math.exp(-(5**0.5) * d / length)
            else:
                value = math.exp(-2 * math.sin(math.pi * d / period) ** 2 / length**2)
            result[i, j] = scale**2 * (value + 1e-8 * (i == j)) + noise**2 * (i == j)
    return result


def fixed(kernel: str, noise: float = 0.2) -> GaussianProcess:
    return made(kernel=kernel, length_scale=(0.7, 0.7), scale=(1.5, 1.5), period=(0.9, 0.9), noise=noise)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_covariance_by_sampling(kernel: str) -> None:
    x = np.array([-2.0, -1.6, -0.7, 0.2, 0.3, 1.9])
    y = fixed(kernel).curves(episode_keys(0, "sampling", 0, 40_000), np.broadcast_to(x, (40_000, 6)))
    expected = covariance(kernel, x, 0.7, 1.5, 0.9, 0.2)
    assert np.abs(y.mean(0)).max() < 0.03
    assert np.abs(y.T @ y / 40_000 - expected).max() < 0.08


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_posterior_is_that_of_the_textbook(kernel: str) -> None:
    data, n = fixed(kernel), SHAPE.shots
    x = data.points("test", SHAPE, 3, 4, seed=2)[1]
    task = data.sample("test", SHAPE, 3, 4, seed=2)
    mean, deviation, y = data.posterior("test", SHAPE, 3, 4, seed=2)
    likelihood = data.log_likelihood("test", SHAPE, 3, 4, seed=2)
    for i in range(4):
        k = covariance(kernel, x[i], 0.7, 1.5, 0.9, 0.2)
        support = task.support.y[i, :, 0].double().numpy()
        gain = np.linalg.solve(k[:n, :n], k[:n, n:]).T
        # The support targets of the task are rounded to float32.
        assert np.allclose(mean[i], gain @ support, atol=1e-4)
        assert np.allclose(deviation[i], np.sqrt(np.diag(k[n:, n:] - gain @ k[:n, n:])), rtol=1e-9)
        assert np.allclose(y[i], task.query.y[i, :, 0].numpy(), atol=1e-5)
        density = Normal(torch.tensor(mean[i]), torch.tensor(deviation[i])).log_prob(torch.tensor(y[i]))
        assert likelihood[i] == pytest.approx(density.mean().item(), rel=1e-12)


def test_the_first_points_do_not_depend_on_the_others() -> None:
    few, many = (made().sample("test", TaskShape(1, 7, n), 0, 5, seed=0) for n in (5, 200))
    torch.testing.assert_close(few.support.y, many.support.y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(few.query.y, many.query.y[:, :5], rtol=1e-5, atol=1e-6)


def test_the_posterior_is_calibrated_and_its_likelihood_is_the_highest() -> None:
    data = made(noise=0.02, scale=(0.1, 1.0))
    mean, deviation, y = data.posterior("test", SHAPE, 0, 4000, seed=0)
    assert (np.abs(y - mean) < 1.959964 * deviation).mean() == pytest.approx(0.95, abs=0.005)

    def likelihood(width: float) -> float:
        return float((-0.5 * ((y - mean) / (width * deviation)) ** 2 - np.log(width * deviation)).mean())

    assert likelihood(1.0) > max(likelihood(0.9), likelihood(1.1))


def test_the_scales_are_drawn_for_each_task() -> None:
    data = made(length_scale=(0.05, 5.0), scale=(0.5, 2.0), noise=0.0)
    x = np.broadcast_to(np.linspace(-2, 2, 60), (3000, 60))
    y = data.curves(episode_keys(0, "scales", 0, 3000), x)
    # A mean square is drawn twice: with the scale, and with the function. E[s²] is (2³ − 0.5³) / 4.5.
    assert np.square(y).mean() == pytest.approx((2**3 - 0.5**3) / 4.5, rel=0.05)
    steps = np.square(np.diff(y)).mean(1) / np.square(y).mean(1)
    assert np.quantile(steps, 0.99) > 0.25
    assert np.quantile(steps, 0.05) < 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_noise_hundreds_of_points_can_be_drawn(kernel: str) -> None:
    task = made(kernel=kernel, noise=0.0).sample("test", TaskShape(1, 200, 200), 0, 2, seed=0)
    assert all(bool(y.isfinite().all()) for y in (task.support.y, task.query.y))


def test_the_likelihood_follows_the_chain_rule() -> None:
    data = fixed("rbf")
    keys, x = data.points("train", SHAPE, 0, 1, seed=0)
    y = torch.tensor(data.curves(keys, x)[0])
    k = torch.tensor(covariance("rbf", x[0], 0.7, 1.5, 0.9, 0.2))
    seven, eight = (
        MultivariateNormal(torch.zeros(n, dtype=torch.float64), k[:n, :n]).log_prob(y[:n]).item() for n in (7, 8)
    )
    found = data.log_likelihood("train", TaskShape(1, 7, 1), 0, 1, seed=0)
    assert found[0] == pytest.approx(eight - seven, rel=1e-6)


def test_an_evaluation_has_the_likelihood_of_the_exact_posterior() -> None:
    data = made()
    found = data.measure("test", SHAPE, 3, 4, seed=2)
    assert found == {"exact_log_likelihood": data.log_likelihood("test", SHAPE, 3, 4, seed=2).tolist()}


def test_facts() -> None:
    facts = made(kernel="periodic").facts("test")
    assert facts["period"] == "1.0 to 1.0"
    assert "period" not in made().facts("test")
    data = made()
    exact = data.log_likelihood("test", TaskShape(1, 25, 25), 1000, 2000, seed=7).mean()
    assert data.facts("test")["log-likelihood of the exact posterior (25 shots)"] == pytest.approx(exact, abs=0.05)
