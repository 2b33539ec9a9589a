"""Tests of the counter-based random numbers: uniform, uncorrelated, and without repetition where that is promised."""

from __future__ import annotations

import numpy as np
import pytest

from metaforge.data.random_numbers import bits, episode_keys, normals, sample_without_replacement, uniforms
from metaforge.errors import ConfigError


@pytest.mark.parametrize(("population", "count"), [(20, 16), (20, 20), (6, 1), (1000, 5), (81, 20)])
def test_samples_without_replacement_are_uniform_in_every_position(population: int, count: int) -> None:
    draws = 60_000
    chosen = sample_without_replacement(episode_keys(0, "uniform", 0, draws), population, count)
    assert chosen.shape == (draws, count)
    ordered = np.sort(chosen, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    assert ordered.min() >= 0
    assert ordered.max() < population
    for position in {0, count // 2, count - 1}:
        counts = np.bincount(chosen[:, position], minlength=population)
        expected = draws / population
        chi = ((counts - expected) ** 2 / expected).sum()
        # Six standard deviations of chi-square with `population - 1` degrees of freedom.
        assert abs(chi - (population - 1)) < 6 * np.sqrt(2 * population)


def test_uniforms_fill_the_unit_interval_and_are_not_correlated() -> None:
    numbers = uniforms(episode_keys(0, "u", 0, 50_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.allclose(numbers.mean(0), 0.5, atol=0.008)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    assert np.abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 0.03
    assert len(np.unique(bits(episode_keys(0, "u", 0, 10_000), 8))) == 80_000


def test_normals_are_normal_and_do_not_depend_on_their_number() -> None:
    keys = episode_keys(0, "n", 0, 50_000)
    numbers = normals(keys, 4)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert np.allclose((numbers**power).mean(0), moment, atol=0.12 if power > 2 else 0.02)
    assert np.allclose((np.abs(numbers) < 1.959964).mean(0), 0.95, atol=0.005)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    assert np.array_equal(numbers[:, :2], normals(keys, 2))
    assert np.isfinite(normals(keys, 40)).all()


def test_keys_of_later_episodes_do_not_depend_on_earlier_ones() -> None:
    keys = episode_keys(3, "train", 0, 10)
    assert np.array_equal(keys[4:7], episode_keys(3, "train", 4, 3))
    assert len(set(keys.tolist()) | set(episode_keys(3, "test", 0, 10).tolist())) == 20


def test_negative_episode_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        episode_keys(0, "train", -1, 5)
