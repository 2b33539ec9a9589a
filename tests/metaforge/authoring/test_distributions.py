"""Densities, divergences and coverage: equal to torch's distributions, and to counting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence
from torch.func import vmap

from metaforge.authoring import coverage, log_mean, log_normal, normal_divergence


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(mean: Tensor, deviation: Tensor) -> MixtureSameFamily:
    """Return the mixture of normal distributions along the first dimension, with equal weights."""
    components = Normal(mean.movedim(0, -1), deviation.movedim(0, -1))
    return MixtureSameFamily(Categorical(torch.ones_like(components.mean)), components)


def test_densities() -> None:
    y, mean, deviation = draw(5, 2), draw(3, 5, 2, seed=1), draw(3, 5, 2, seed=2).exp()
    log_p = log_normal(y, mean, deviation)
    torch.testing.assert_close(log_p, Normal(mean, deviation).log_prob(y), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(log_mean(log_p), mixture(mean, deviation).log_prob(y), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(log_mean(log_p[:1]), log_p[0])
    assert log_mean(torch.tensor([-1e4, -1e4])).item() == -1e4


def test_the_divergence_is_that_of_torch() -> None:
    numbers = [draw(7), draw(7, seed=1).exp(), draw(7, seed=2), draw(7, seed=3).exp()]
    expected = kl_divergence(Normal(*numbers[:2]), Normal(*numbers[2:]))
    torch.testing.assert_close(normal_divergence(*numbers), expected, rtol=1e-12, atol=1e-14)
    assert not torch.isclose(normal_divergence(*numbers[2:], *numbers[:2]), expected).any()
    assert normal_divergence(*numbers[:2], *numbers[:2]).abs().max() < 1e-15


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_coverage_of_a_normal_distribution_is_that_of_its_quantiles(share: float) -> None:
    mean, deviation = draw(1, 1000), draw(1, 1000, seed=1).exp()
    y = mean[0] + 1.3 * deviation[0] * draw(1000, seed=2)
    low, high = (Normal(mean[0], deviation[0]).icdf(torch.tensor(p)) for p in (0.5 - share / 2, 0.5 + share / 2))
    assert coverage(y, mean, deviation, share) == ((low < y) & (y < high)).double().mean()


def test_the_coverage_of_a_mixture_is_that_of_its_samples() -> None:
    mean, deviation = 3 * draw(4, 200), draw(4, 200, seed=1).exp()
    torch.manual_seed(0)
    samples = mixture(mean, deviation).sample((20_000,)).sort(0).values
    low, high = samples[500], samples[19_500]
    y = mixture(mean, deviation).sample()
    for shift, tolerance in ((0.0, 0.01), (3.0, 0.02)):
        expected = ((low < y + shift) & (y + shift < high)).double().mean().item()
        assert coverage(y + shift, mean, deviation).item() == pytest.approx(expected, abs=tolerance)
    many = mixture(mean, deviation).sample((500,))
    assert vmap(lambda y: coverage(y, mean, deviation))(many).mean().item() == pytest.approx(0.95, abs=0.003)
