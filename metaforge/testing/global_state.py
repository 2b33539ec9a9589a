"""The random generators of the process, whose state a plugin must not change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python without changing them."""
    return {
        "torch's": torch.default_generator.get_state().tolist(),
        "NumPy's": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "Python's": random.getstate(),
    }


@contextmanager
def assert_generators_unchanged(what: str) -> Iterator[None]:
    """Raise `AssertionError` if the block changes the state of a global generator; `what` names the code in it."""
    before = generator_states()
    yield
    after = generator_states()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, (
        f"{what} uses {' and '.join(changed)} global generator; draw random numbers from the key instead"
        " (metaforge.authoring.keys)"
    )
