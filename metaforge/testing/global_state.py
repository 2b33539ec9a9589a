"""What a plugin must leave alone: the generators of the whole process, and the interpreter that imports it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Return the states of the process's generators, which nothing here changes."""
    return {
        "torch's": torch.default_generator.get_state().tolist(),
        "NumPy's": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "Python's": random.getstate(),
    }


@contextmanager
def untouched_generators(what: str) -> Iterator[None]:
    """Fail where the block draws from, or seeds, a generator of the whole process."""
    before = generator_states()
    yield
    after = generator_states()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, (
        f"{what} uses {' and '.join(changed)} global generator; draw from the key (metaforge.authoring.keys)"
    )
