"""Omniglot as MAML, FOMAML and Meta-SGD are reported on it.

The split is random, of 1100, 100 and 423 characters as the authors' is, but it is not the same draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class OmniglotMAML(Preset):
    """Omniglot with a random split, rotations drawn per task, and 600 test tasks with as many queries as shots.

    Images of 28 × 28 pixels, resized by Lanczos; batch norm is transductive. For five shots, set `task.shots=5` and
    `task.queries=5`.
    """

    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.2"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 5, "shots": 1, "queries": 1},
        "dataset": {"name": "omniglot", "size": 28, "split": "random", "resample": "lanczos", "rotations": "task"},
        "evaluate": {"tasks": 600},
    }
