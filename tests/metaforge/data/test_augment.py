"""Tests of random changes of images: what they move, how far, and that they depend on the key alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from metaforge.authoring.protocols import TaskShape
from metaforge.data.augment import jitter
from metaforge.data.class_pool import ClassPool, Pixels
from metaforge.data.episodes import draw_episode, sample_episodes
from metaforge.data.random_numbers import episode_keys

KEYS = episode_keys(0, "test", 0, 400)


def dots(count: int, row: int, column: int, size: int = 41) -> Pixels:
    """Return images with a spot of 3 x 3 pixels around a place."""
    images = np.zeros((count, 1, size, size), dtype=np.uint8)
    images[:, :, row - 1 : row + 2, column - 1 : column + 2] = 240
    return images


def centres(images: Pixels) -> np.ndarray:
    """Return the centre of mass of each image, (row, column) relative to the middle `[n, 2]`."""
    mass = images[:, 0].astype(np.float64)
    places = np.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    total = mass.sum((1, 2))
    return np.stack([(mass.sum(2) * places).sum(1), (mass.sum(1) * places).sum(1)], axis=1) / total[:, None]


def test_nothing_moves_by_default() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 9)).astype(np.uint8)
    assert np.array_equal(jitter(images, KEYS[:4]), images)


def test_shifts_are_uniform_up_to_the_share_of_the_size() -> None:
    moved = centres(jitter(dots(400, 20, 20), KEYS, shift=0.2))
    assert np.abs(moved).max() <= 0.2 * 41 + 0.01
    assert np.abs(moved).max() > 0.19 * 41
    # Uniform numbers in ±a have the standard deviation a / √3; the two directions are independent.
    assert moved.std(0) == pytest.approx(0.2 * 41 / 3**0.5, rel=0.1)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.15


def test_rotations_are_uniform_up_to_the_angle_about_the_middle() -> None:
    moved = centres(jitter(dots(400, 20, 35), KEYS, angle=30))
    assert np.hypot(*moved.T) == pytest.approx(np.full(400, 15.0), abs=0.1)
    angles = np.degrees(np.arctan2(moved[:, 0], moved[:, 1]))
    assert 28.5 < np.abs(angles).max() <= 30.3
    assert angles.std() == pytest.approx(30 / 3**0.5, rel=0.1)
    assert abs(angles.mean()) < 3


def test_what_comes_into_view_has_the_values_of_the_edge() -> None:
    white = np.full((10, 1, 12, 12), 255, dtype=np.uint8)
    assert (jitter(white, KEYS[:10], shift=0.4, angle=45) == 255).all()


def test_an_image_depends_on_its_own_key_alone() -> None:
    images = dots(6, 18, 22)
    together = jitter(images, KEYS[:6], shift=0.1, angle=10)
    for number in range(6):
        alone = jitter(images[number : number + 1], KEYS[number : number + 1], shift=0.1, angle=10)
        assert np.array_equal(alone[0], together[number])
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("drawn", [False, True])
def test_a_pool_augments_each_image_of_its_tasks_and_nothing_else(drawn: bool) -> None:
    images = np.broadcast_to(dots(1, 20, 20), (10, 8, 1, 41, 41)).copy()
    plain = ClassPool(images, list("abcdefghij"))
    moving = ClassPool(images, list("abcdefghij"), augment=partial(jitter, shift=0.2))
    if drawn:
        before, after = (draw_episode(p, [1, 2], [2, 3], 4, 0, seed=0, split="train") for p in (plain, moving))
    else:
        before, after = (sample_episodes(p, TaskShape(3, 2, 4), 0, 5, seed=0, split="train") for p in (plain, moving))
    assert torch.equal(before.support.y, after.support.y)
    assert torch.equal(before.query.y, after.query.y)
    for part in (after.support, after.query):
        seen = part.x.reshape(-1, 41 * 41)
        assert len(seen.unique(dim=0)) == len(seen)
    if not drawn:
        second = sample_episodes(moving, TaskShape(3, 2, 4), 1, 1, seed=0, split="train")
        assert torch.equal(second.query.x[0], after.query.x[1])
