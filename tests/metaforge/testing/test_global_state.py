"""Tests of the guard around the global random generators."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from metaforge.testing.global_state import assert_generators_unchanged, generator_states


@pytest.mark.parametrize(
    ("draw", "name"),
    [(lambda: torch.rand(1), "torch's"), (lambda: np.random.rand(), "NumPy's"), (random.random, "Python's")],
    ids=["torch", "numpy", "python"],
)
def test_a_draw_from_a_global_generator_is_an_error(draw: Callable[[], object], name: str) -> None:
    with pytest.raises(AssertionError, match=f"the block uses {name} global generator"):  # noqa: SIM117
        with assert_generators_unchanged("the block"):
            draw()


def test_local_generators_and_reading_the_state_are_allowed() -> None:
    with assert_generators_unchanged("the block"):
        torch.rand(1, generator=torch.Generator().manual_seed(0))
        np.random.default_rng(0).random()
        random.Random(0).random()
        generator_states()
